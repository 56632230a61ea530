//! Gathers the ring slots of one packet: a request with the whole packet's size, its extras, and further requests.
//!
//! Two bounds as in Linux's netback: a packet of more than 18 slots, which no backend has to support, is refused; a
//! packet of more than 20 is an attack. This module checks all that the guest writes into requests and extras, once.

use arrayvec::ArrayVec;
use ring_abi::netif::extra::{GSO_TCPV4, GSO_TCPV6, Kind};
use ring_abi::netif::{ETH_HLEN, SLOTS_FATAL, SLOTS_MIN, TxFlags, TxRequest, TxSlot};
use ring_abi::{GrantRef, PAGE_SIZE};

/// Bytes of the shortest packet: an Ethernet header.
pub const SHORTEST: u16 = ETH_HLEN as u16;
/// Most extras of one packet: one of each type.
const EXTRAS: u8 = 4;

/// The guest broke the protocol: the vif is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// A ring's indexes are impossible.
    #[error(transparent)]
    Ring(#[from] ring_abi::ring::Fault),
    /// More slots than any legal packet has ever had: Linux's `fatal_skb_slots`.
    #[error("netif tx: a packet of more than {SLOTS_FATAL} slots")]
    Slots,
    /// The bytes of a slot cross its page's end.
    #[error("netif tx: {size} bytes at {offset} cross the page's end")]
    Page {
        /// Offset of the first byte in the page.
        offset: u16,
        /// Bytes.
        size: u16,
    },
    /// An extra of a type that netif.h does not define.
    #[error("netif tx: an extra of unknown type {0}")]
    Extra(u8),
    /// More extras than there are types.
    #[error("netif tx: more than {EXTRAS} extras in one packet")]
    Extras,
    /// A segmentation of unknown type, or into segments of 0 bytes.
    #[error("netif tx: segmentation of type {gso_type} into {size} bytes")]
    Gso {
        /// Bytes of payload in each segment.
        size: u16,
        /// `XEN_NETIF_GSO_TYPE_*`.
        gso_type: u8,
    },
}

/// Bytes of one slot, inside one granted page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// The granted page.
    pub gref: GrantRef,
    /// Offset of the first byte in the page.
    pub offset: u16,
    /// Bytes; may be 0. `offset + size` is at most the page's size.
    pub size: u16,
}

/// Why a packet is answered with an error and not sent. The vif stays connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Shorter than an Ethernet header.
    Short,
    /// 19 or 20 slots.
    Slots,
    /// The slots' sizes sum to more than the packet's size: the size of a packet of 64 KiB or more has overflowed.
    Size,
    /// A change of the multicast list, a feature that is not advertised.
    Multicast,
}

/// One packet: its bytes in the guest's pages, its metadata, and the requests to be answered.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    size: u16,
    flags: TxFlags,
    extras: u8,
    refusal: Option<Refusal>,
    gso: Option<(u8, u16)>,
    ids: ArrayVec<u16, SLOTS_FATAL>,
    fragments: ArrayVec<Fragment, SLOTS_FATAL>,
}

impl Packet {
    /// Bytes of the whole packet; at least [`SHORTEST`] unless refused.
    #[inline]
    pub fn size(&self) -> usize {
        self.size.into()
    }

    /// The first request's flags.
    #[inline]
    pub fn flags(&self) -> TxFlags {
        self.flags
    }

    /// The segmentation to be done: [`GSO_TCPV4`] or [`GSO_TCPV6`], and bytes of each segment, not 0.
    #[inline]
    pub fn gso(&self) -> Option<(u8, u16)> {
        self.gso
    }

    /// Why the packet is refused, if it is.
    #[inline]
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// The packet's bytes, in order; their sizes sum to [`Packet::size`] unless refused.
    #[inline]
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// The packet's bytes beyond the first `skip`, in order and without empty fragments.
    #[inline]
    pub fn fragments_beyond(&self, skip: usize) -> impl Iterator<Item = Fragment> + '_ {
        let mut skip = skip;
        self.fragments.iter().filter_map(move |fragment| {
            let skipped = skip.min(fragment.size.into());
            skip -= skipped;
            let offset = fragment.offset + skipped as u16;
            let rest = Fragment { offset, size: fragment.size - skipped as u16, ..*fragment };
            (rest.size > 0).then_some(rest)
        })
    }

    /// The ids of the requests to be answered.
    #[inline]
    pub fn ids(&self) -> &[u16] {
        &self.ids
    }

    /// The slots used by extras, to be answered with `NETIF_RSP_NULL`.
    #[inline]
    pub fn extras(&self) -> u8 {
        self.extras
    }

    #[inline]
    fn start(&mut self, first: TxRequest) {
        // Field by field: assigning a new value would copy its empty arrays too.
        self.size = first.size;
        self.flags = first.flags;
        self.extras = 0;
        self.refusal = None;
        self.gso = None;
        self.ids.clear();
        self.fragments.clear();
        self.ids.push(first.id);
        self.fragments.push(Fragment { gref: first.gref, offset: first.offset, size: first.size });
    }

    fn add(&mut self, next: TxRequest) -> Result<(), Fault> {
        if next.offset as usize + next.size as usize > PAGE_SIZE {
            return Err(Fault::Page { offset: next.offset, size: next.size });
        }
        self.ids.try_push(next.id).map_err(|_| Fault::Slots)?;
        self.fragments.push(Fragment { gref: next.gref, offset: next.offset, size: next.size });
        // The first request has the size of the whole packet; its own fragment is what the others leave.
        match self.fragments[0].size.checked_sub(next.size) {
            Some(own) => self.fragments[0].size = own,
            None => self.refusal = Some(Refusal::Size),
        }
        Ok(())
    }

    fn add_extra(&mut self, kind: Kind) -> Result<(), Fault> {
        if self.extras == EXTRAS {
            return Err(Fault::Extras);
        }
        self.extras += 1;
        match kind {
            Kind::Gso { size, gso_type } => {
                if size == 0 || !matches!(gso_type, GSO_TCPV4 | GSO_TCPV6) {
                    return Err(Fault::Gso { size, gso_type });
                }
                self.gso = Some((gso_type, size));
            }
            Kind::McastAdd(_) | Kind::McastDel(_) => self.refusal = Some(Refusal::Multicast),
            Kind::Hash { .. } => {}
            Kind::Unknown(kind) => return Err(Fault::Extra(kind)),
        }
        Ok(())
    }

    #[inline]
    fn finish(&mut self) -> Result<(), Fault> {
        if self.refusal.is_none() {
            self.refusal = self.find_refusal();
        }
        let first = self.fragments[0];
        if self.refusal.is_none() && first.offset as usize + first.size as usize > PAGE_SIZE {
            return Err(Fault::Page { offset: first.offset, size: first.size });
        }
        Ok(())
    }

    #[inline]
    fn find_refusal(&self) -> Option<Refusal> {
        if self.ids.len() > SLOTS_MIN {
            Some(Refusal::Slots)
        } else if self.size < SHORTEST {
            Some(Refusal::Short)
        } else {
            None
        }
    }
}

/// What the next slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Expect {
    #[default]
    First,
    Extra,
    More,
}

/// The state of assembling: which kind of slot comes next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Assembler {
    expect: Expect,
}

impl Assembler {
    /// Adds the next slot to `packet`, which is overwritten when a new packet begins; `true` if the packet is
    /// complete. A guest may publish a packet in several steps: the caller gives the same `packet` until it is
    /// complete.
    ///
    /// # Errors
    /// [`Fault`]: the guest broke the protocol.
    #[inline]
    pub fn feed(&mut self, slot: TxSlot, packet: &mut Packet) -> Result<bool, Fault> {
        let more = match self.expect {
            Expect::First => {
                let first = slot.request();
                packet.start(first);
                if first.flags.contains(TxFlags::EXTRA_INFO) {
                    self.expect = Expect::Extra;
                    return Ok(false);
                }
                first.flags.contains(TxFlags::MORE_DATA)
            }
            Expect::Extra => {
                let extra = slot.extra();
                packet.add_extra(extra.kind)?;
                if extra.more {
                    return Ok(false);
                }
                packet.flags.contains(TxFlags::MORE_DATA)
            }
            Expect::More => {
                let next = slot.request();
                packet.add(next)?;
                next.flags.contains(TxFlags::MORE_DATA)
            }
        };
        self.expect = if more { Expect::More } else { Expect::First };
        if !more {
            packet.finish()?;
        }
        Ok(!more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::netif::extra::Extra;

    fn request(id: u16, offset: u16, size: u16, flags: TxFlags) -> TxSlot {
        TxRequest { gref: GrantRef(u32::from(id) + 8), offset, flags, id, size }.into()
    }

    fn assemble(slots: &[TxSlot]) -> Result<Vec<Packet>, Fault> {
        let mut assembler = Assembler::default();
        let mut packet = Packet::default();
        let mut done = Vec::new();
        for slot in slots {
            if assembler.feed(*slot, &mut packet)? {
                done.push(packet.clone());
            }
        }
        Ok(done)
    }

    fn sizes(packet: &Packet) -> Vec<u16> {
        packet.fragments().iter().map(|fragment| fragment.size).collect()
    }

    #[test]
    fn first_fragment_gets_the_size_that_the_others_leave() {
        let more = TxFlags::MORE_DATA;
        let slots = [request(1, 0, 600, more), request(2, 9, 0, more), request(3, 96, 400, TxFlags::empty())];
        let packets = assemble(&slots).unwrap();
        assert_eq!((sizes(&packets[0]), packets[0].ids()), (vec![200, 0, 400], [1, 2, 3].as_slice()));
        assert_eq!(packets[0].refusal(), None);
    }

    #[test]
    fn fragments_beyond_a_head_begin_behind_it_and_are_not_empty() {
        let more = TxFlags::MORE_DATA;
        let slots = [request(1, 5, 600, more), request(2, 9, 0, more), request(3, 96, 400, TxFlags::empty())];
        let packet = &assemble(&slots).unwrap()[0];
        let beyond = |skip| {
            let fragments = packet.fragments_beyond(skip);
            fragments.map(|Fragment { gref, offset, size }| (gref.0, offset, size)).collect::<Vec<_>>()
        };
        assert_eq!(beyond(128), [(9, 133, 72), (11, 96, 400)]);
        assert_eq!(beyond(200), [(11, 96, 400)]);
        assert_eq!(beyond(599), [(11, 495, 1)]);
        assert_eq!(beyond(600), []);
    }

    #[test]
    fn packet_of_18_slots_is_taken_of_19_refused_and_of_21_a_fault() {
        for (count, expected) in [(18, Ok(None)), (19, Ok(Some(Refusal::Slots))), (21, Err(Fault::Slots))] {
            let mut slots = vec![request(0, 0, 100, TxFlags::MORE_DATA)];
            slots.extend((1..count).map(|id| request(id, 0, 1, TxFlags::MORE_DATA)));
            let last = slots.len() - 1;
            slots[last] = request(last as u16, 0, 1, TxFlags::empty());
            let got = assemble(&slots).map(|packets| packets[0].refusal());
            assert_eq!(got, expected, "{count}");
        }
    }

    #[test]
    fn sizes_beyond_a_page_are_faults_and_beyond_the_packet_refused() {
        let none = TxFlags::empty();
        assert_eq!(assemble(&[request(0, 0, 13, none)]).unwrap()[0].refusal(), Some(Refusal::Short));
        let fault = Fault::Page { offset: 4000, size: 97 };
        assert_eq!(assemble(&[request(0, 4000, 97, none)]).unwrap_err(), fault);
        let slots = [request(0, 0, 99, TxFlags::MORE_DATA), request(1, 4000, 97, none)];
        assert_eq!(assemble(&slots).unwrap_err(), fault);
        let slots = [request(0, 0, 99, TxFlags::MORE_DATA), request(1, 0, 100, none)];
        assert_eq!(assemble(&slots).unwrap()[0].refusal(), Some(Refusal::Size));
    }

    #[test]
    fn extras_after_the_first_slot_set_gso_and_are_counted() {
        let gso = Kind::Gso { size: 1448, gso_type: GSO_TCPV4 };
        let hash = Kind::Hash { hash_type: 1, algorithm: 1, value: [1, 2, 3, 4] };
        let slots = [
            request(0, 0, 5000, TxFlags::MORE_DATA | TxFlags::EXTRA_INFO),
            Extra { more: true, kind: gso }.into(),
            Extra { more: false, kind: hash }.into(),
            request(1, 0, 4096, TxFlags::empty()),
        ];
        let packet = &assemble(&slots).unwrap()[0];
        assert_eq!(packet.gso(), Some((GSO_TCPV4, 1448)));
        assert_eq!((packet.extras(), sizes(packet)), (2, vec![904, 4096]));
    }

    #[test]
    fn wrong_or_too_many_extras_are_faults() {
        let first = request(0, 0, 100, TxFlags::EXTRA_INFO);
        let with = |kind, more| -> TxSlot { Extra { more, kind }.into() };
        let gso = |size, gso_type| assemble(&[first, with(Kind::Gso { size, gso_type }, false)]);
        assert_eq!(gso(0, 1).unwrap_err(), Fault::Gso { size: 0, gso_type: 1 });
        assert_eq!(gso(1, 0).unwrap_err(), Fault::Gso { size: 1, gso_type: 0 });
        assert_eq!(assemble(&[first, with(Kind::Unknown(9), false)]).unwrap_err(), Fault::Extra(9));
        let endless = [[first].as_slice(), &[with(Kind::McastAdd([1; 6]), true); 9]].concat();
        assert_eq!(assemble(&endless).unwrap_err(), Fault::Extras);
    }
}
