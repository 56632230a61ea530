//! The VLANs of a port (IEEE 802.1Q): which it is in, in which its frames have no tag, and which one untagged frames from it are in.
//!
//! The text is xl-network-configuration(5)'s `vlan=`: `10` for one VLAN without tags, `10p/20/30-39` for VLAN 10 without tags and the others
//! with; and what that has not: `20t/30-39t` with tags alone, `10pt` where only what comes has none, and `none`. VLAN 0 is what untagged frames are in where no port says another.

use std::{fmt, str::FromStr, sync::Arc};

use crate::{DropReason, Frame};

/// The highest VLAN; 4095 is reserved (802.1Q, table 9-2).
pub(crate) const MAX: u16 = 4094;
const DOT1Q: [u8; 2] = [0x81, 0x00];

/// Some VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set([u64; 64]);

impl Set {
    const NONE: Set = Set([0; 64]);

    #[inline]
    fn has(&self, vlan: u16) -> bool {
        self.0[usize::from(vlan >> 6) & 63] >> (vlan & 63) & 1 == 1
    }

    fn add(&mut self, vlan: u16) {
        self.0[usize::from(vlan >> 6) & 63] |= 1 << (vlan & 63);
    }

    fn remove(&mut self, vlan: u16) {
        self.0[usize::from(vlan >> 6) & 63] &= !(1 << (vlan & 63));
    }

    fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        let words = (0u16..).step_by(64).zip(self.0).filter(|(_, word)| *word != 0);
        words.flat_map(|(first, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
        })
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Membership {
    /// The VLAN of untagged frames from the port; without one they are dropped.
    pvid: Option<u16>,
    /// All that the port is in.
    members: Set,
    /// Those of which it is sent frames without tags.
    untagged: Set,
}

/// The VLANs of a port.
///
/// ```
/// let vlans: bridge::Vlans = "10p/20-22".parse().unwrap();
/// assert_eq!(vlans.to_string(), "10p/20-22");
/// assert!("0".parse::<bridge::Vlans>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlans(Arc<Membership>);

impl Default for Vlans {
    /// [`Vlans::trunk`].
    fn default() -> Vlans {
        Vlans::trunk()
    }
}

/// A text that is not the VLANs of a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {found:?}, expected {expected}")]
pub struct InvalidVlans {
    /// The part of it that is wrong.
    pub found: String,
    /// What would be valid there.
    pub expected: &'static str,
}

/// Which VLAN a frame is in, and whether it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InVlan {
    pub(crate) vlan: u16,
    tag: Tag,
    /// There is another tag behind the first, which would be the first if that were removed.
    hides_tag: bool,
}

/// A frame's tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tag {
    #[default]
    None,
    /// Of VLAN 0: a priority alone.
    Priority,
    Vlan,
}

/// What is done to a frame's tag before it is sent to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retag {
    Keep,
    Remove,
    /// A tag of that VLAN, in place of one that has a priority alone.
    Set(u16),
}

impl Vlans {
    /// What [`Vlans::from_str`] reads, in words.
    pub const EXPECTED: &'static str = "a VLAN such as 10, or several such as 10p/20/30-39 of which p marks the one without tags, or 20t/30-39t with tags alone, or none";

    /// Of a port that says nothing: all VLANs with tags, and untagged frames without.
    pub fn trunk() -> Vlans {
        let mut members = Set([u64::MAX; 64]);
        members.0[63] >>= 1;
        Vlans::with(0, members)
    }

    /// Of a guest's port that says nothing: where other ports are in VLANs, untagged frames alone.
    pub fn untagged() -> Vlans {
        Vlans::with(0, Set::NONE)
    }

    /// Of a port that is in no VLAN: nothing comes from it, and nothing is sent to it.
    pub fn none() -> Vlans {
        Vlans(Arc::new(Membership { pvid: None, members: Set::NONE, untagged: Set::NONE }))
    }

    /// With a VLAN as `bridge vlan add` adds it, whose marks are these from now on. The default of a port that was given none is not kept.
    pub fn adding(&self, vlan: u16, is_pvid: bool, is_untagged: bool) -> Vlans {
        let mut membership = if self.are_given() { (*self.0).clone() } else { (*Vlans::none().0).clone() };
        membership.members.add(vlan);
        match is_untagged {
            true => membership.untagged.add(vlan),
            false => membership.untagged.remove(vlan),
        }
        if is_pvid {
            membership.pvid = Some(vlan);
        } else if membership.pvid == Some(vlan) {
            membership.pvid = None;
        }
        Vlans(Arc::new(membership))
    }

    /// Without a VLAN, as `bridge vlan del` removes it; `None` if the port was not given that.
    pub fn removing(&self, vlan: u16) -> Option<Vlans> {
        if !self.are_given() || !self.has(vlan) {
            return None;
        }
        let mut membership = (*self.0).clone();
        membership.members.remove(vlan);
        membership.untagged.remove(vlan);
        membership.pvid = membership.pvid.filter(|pvid| *pvid != vlan);
        Some(Vlans(Arc::new(membership)))
    }

    fn with(pvid: u16, mut members: Set) -> Vlans {
        let mut untagged = Set::NONE;
        untagged.add(pvid);
        members.add(pvid);
        Vlans(Arc::new(Membership { pvid: Some(pvid), members, untagged }))
    }

    /// Whether the port's VLANs were given, if only to be none: then a switch looks at all ports' tags.
    pub fn are_given(&self) -> bool {
        self.0.pvid != Some(0)
    }

    /// Whether the port is in the VLAN.
    #[inline]
    pub fn has(&self, vlan: u16) -> bool {
        self.0.members.has(vlan)
    }

    /// The VLANs that the port is in.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.members.iter()
    }

    /// Number of VLANs that the port is in.
    pub fn count(&self) -> u32 {
        self.0.members.count()
    }

    /// The VLAN of untagged frames from the port; without one they are dropped.
    pub fn pvid(&self) -> Option<u16> {
        self.0.pvid
    }

    /// Whether the port is sent frames of this VLAN without tags.
    pub fn is_untagged(&self, vlan: u16) -> bool {
        self.0.untagged.has(vlan)
    }

    /// Which VLAN a frame from the port is in.
    ///
    /// # Errors
    /// [`DropReason::Vlan`] if the port is not in that one, takes no tags, or none but tags, or a second tag is behind one without a VLAN.
    #[inline]
    pub(crate) fn classify(&self, frame: &Frame) -> Result<InVlan, DropReason> {
        let head = frame.head();
        let kind = head.get(12..14).ok_or(DropReason::Runt)?;
        if kind != DOT1Q {
            let pvid = self.0.pvid.ok_or(DropReason::Vlan)?;
            return Ok(InVlan { vlan: pvid, tag: Tag::None, hides_tag: false });
        }
        let tci = head.get(14..18).map(|tag| u16::from_be_bytes([tag[0], tag[1]])).ok_or(DropReason::Vlan)?;
        let hides_tag = head.get(16..18) == Some(&DOT1Q);
        match tci & 0xfff {
            0 if !hides_tag => {
                Ok(InVlan { vlan: self.0.pvid.ok_or(DropReason::Vlan)?, tag: Tag::Priority, hides_tag })
            }
            vlan if vlan != 0 && self.has(vlan) && self.0.members.0 != self.0.untagged.0 => {
                Ok(InVlan { vlan, tag: Tag::Vlan, hides_tag })
            }
            _ => Err(DropReason::Vlan),
        }
    }

    /// Whether the port is sent a frame: it is in the frame's VLAN, and what is sent does not look like a frame of another.
    #[inline]
    pub(crate) fn takes(&self, frame: InVlan) -> bool {
        self.has(frame.vlan) && !(frame.hides_tag && self.retag(frame) == Retag::Remove)
    }

    /// What is done to a frame in that VLAN, in which the port is, before it is sent there.
    #[inline]
    pub(crate) fn retag(&self, frame: InVlan) -> Retag {
        match (self.0.untagged.has(frame.vlan), frame.tag) {
            (true, Tag::None) | (false, Tag::Vlan) => Retag::Keep,
            (true, _) => Retag::Remove,
            (false, _) => Retag::Set(frame.vlan),
        }
    }
}

/// The VLAN of a frame's tag.
pub(crate) fn tag_of(frame: &Frame) -> Option<u16> {
    let tag = frame.head().get(12..16).filter(|tag| tag[..2] == DOT1Q)?;
    Some(u16::from_be_bytes([tag[2], tag[3]]) & 0xfff)
}

impl Retag {
    /// Bytes by which a frame grows at most.
    pub(crate) fn growth(self) -> usize {
        if matches!(self, Retag::Set(_)) { 4 } else { 0 }
    }

    /// Changes a frame's tag.
    pub(crate) fn apply(self, frame: &mut Frame) {
        let is_tagged = frame.head().get(12..14) == Some(&DOT1Q[..]);
        match self {
            Retag::Keep => {}
            Retag::Remove => frame.remove_tag(),
            Retag::Set(vlan) if is_tagged => {
                if let Some(tci) = frame.head_mut().get_mut(14..16) {
                    let priority = tci[0] & 0xf0;
                    tci.copy_from_slice(&vlan.to_be_bytes());
                    tci[0] |= priority;
                }
            }
            Retag::Set(vlan) => {
                let [a, b] = vlan.to_be_bytes();
                frame.insert_tag([DOT1Q[0], DOT1Q[1], a, b]);
            }
        }
    }
}

impl FromStr for Vlans {
    type Err = InvalidVlans;

    fn from_str(text: &str) -> Result<Vlans, InvalidVlans> {
        if text.trim() == "none" {
            return Ok(Vlans::none());
        }
        let mut membership = Membership { pvid: None, members: Set::NONE, untagged: Set::NONE };
        let parts: Vec<&str> = text.trim().split('/').collect();
        for part in &parts {
            membership.add(part, parts.len() == 1)?;
        }
        // Where it was not left out: one who forgets it has no frames without tags.
        if membership.pvid.is_none() && !parts.iter().all(|part| part.ends_with(['t', 'u'])) {
            let expected =
                "one VLAN marked as that of untagged frames, as in 10p/20, or all with t or u, as in 20t/30t";
            return Err(InvalidVlans { found: text.to_owned(), expected });
        }
        Ok(Vlans(Arc::new(membership)))
    }
}

impl Membership {
    /// Adds a VLAN or `FIRST-LAST`, with `p` (of untagged frames, both ways), `pt` (of those that come), `u` (sent without tags) or `t` (with tags).
    fn add(&mut self, part: &str, is_only: bool) -> Result<(), InvalidVlans> {
        let invalid = |expected| InvalidVlans { found: part.to_owned(), expected };
        let vlan = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let vlan = is_number.then(|| text.parse().ok()).flatten();
            vlan.filter(|vlan| (1..=MAX).contains(vlan)).ok_or(if is_number {
                invalid("a VLAN from 1 to 4094")
            } else {
                invalid(Vlans::EXPECTED)
            })
        };
        let alone = is_only && !part.contains('-');
        let numbers = part.trim_end_matches(|mark: char| mark.is_ascii_lowercase());
        let (is_pvid, is_untagged) = match &part[numbers.len()..] {
            "" => (alone, alone),
            "p" => (true, true),
            "pt" => (true, false),
            "u" => (false, true),
            "t" => (false, false),
            _ => return Err(invalid(Vlans::EXPECTED)),
        };
        let (first, last) = match numbers.split_once('-') {
            Some(_) if is_pvid => return Err(invalid("p behind a single VLAN")),
            Some((first, last)) => (vlan(first)?, vlan(last)?),
            None => (vlan(numbers)?, vlan(numbers)?),
        };
        if first > last {
            return Err(invalid("a range whose first VLAN is not above its last"));
        }
        if is_pvid && self.pvid.is_some() {
            return Err(invalid("one VLAN with p, of which there is one already"));
        }
        if is_pvid {
            self.pvid = Some(first);
        }
        for vlan in first..=last {
            self.members.add(vlan);
            if is_untagged {
                self.untagged.add(vlan);
            }
        }
        Ok(())
    }
}

/// As [`Vlans::from_str`] reads it; where no VLAN was given, `untagged` or `trunk`.
impl fmt::Display for Vlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Membership { pvid, members, untagged } = &*self.0;
        match pvid {
            Some(0) => return f.write_str(if members.count() == 1 { "untagged" } else { "trunk" }),
            Some(pvid) if members.count() == 1 && untagged.has(*pvid) => return write!(f, "{pvid}"),
            Some(pvid) => write!(f, "{pvid}{}", if untagged.has(*pvid) { "p" } else { "pt" })?,
            None if members.count() == 0 => return f.write_str("none"),
            None => {}
        }
        let tagged = if pvid.is_none() { "t" } else { "" };
        let mut separator = if pvid.is_none() { "" } else { "/" };
        let mut rest = members.iter().filter(|vlan| Some(*vlan) != *pvid).peekable();
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) =
                rest.next_if(|next| *next == last + 1 && untagged.has(*next) == untagged.has(first))
            {
                last = next;
            }
            let mark = if untagged.has(first) { "u" } else { tagged };
            match first == last {
                true => write!(f, "{separator}{first}{mark}")?,
                false => write!(f, "{separator}{first}-{last}{mark}")?,
            }
            separator = "/";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
