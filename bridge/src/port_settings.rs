//! What a port may send, as the administrator or the toolstack has set it: in force from its first frame on.

use crate::{Addresses, Flags, Lock, Vlans, fdb::Mac, rate_limit::Rate};

/// Most frames a second that a port may send to many ports at once, with twice as many in a burst. A frame counts as its
/// segments. `None` does not limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StormLimits {
    /// To the broadcast address.
    pub broadcast: Option<u64>,
    /// To other group addresses.
    pub multicast: Option<u64>,
    /// To stations of which no port is known.
    pub unknown_unicast: Option<u64>,
}

impl StormLimits {
    /// Those of a guest's port. Honest guests stay far below them: a scan of 65,536 addresses at nmap's usual pace broadcasts
    /// fewer than 1,000 requests a second, as a kernel asks three times for each of its at most 1,024 unanswered neighbours; a
    /// multicast of 500 Mbit/s in frames of 1,400 bytes has 45,000 a second. Of a station that is not known each frame goes to
    /// all ports, so that a stream to one that never answers is slowed to 140 Mbit/s.
    pub const GUEST: StormLimits =
        StormLimits { broadcast: Some(4_000), multicast: Some(60_000), unknown_unicast: Some(12_500) };
}

/// One of a port's settings, which can be changed while it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// [`PortSettings::lock`] and [`PortSettings::allowed`].
    Lock(Lock, Addresses),
    /// [`PortSettings::vlans`].
    Vlans(Vlans),
    /// [`PortSettings::flags`].
    Flags(Flags),
    /// [`PortSettings::rate`].
    Rate(Option<Rate>),
    /// [`PortSettings::storm`].
    Storm(StormLimits),
}

/// What a port may send. The default is anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSettings {
    /// The address of the only station behind the port: a learning bridge knows it without having seen a frame of it, and no
    /// other port can have it.
    pub address: Option<Mac>,
    /// Which frames may be sent by their addresses.
    pub lock: Lock,
    /// The IP addresses that [`Lock::Ip`] lets it send from, beside the link-local address of `address`.
    pub allowed: Addresses,
    /// The VLANs that the port is in; a wire looks at no tags.
    pub vlans: Vlans,
    /// What else it may do; a wire asks for none of it.
    pub flags: Flags,
    /// The rate at which frames are received from the port; `None`: any.
    pub rate: Option<Rate>,
    /// The bounds of what the port may send to many.
    pub storm: StormLimits,
}

impl PortSettings {
    /// Makes one of them another.
    pub(crate) fn change(&mut self, setting: Setting) {
        match setting {
            Setting::Lock(lock, allowed) => {
                self.lock = lock;
                self.allowed = allowed;
            }
            Setting::Vlans(vlans) => self.vlans = vlans,
            Setting::Flags(flags) => self.flags = flags,
            Setting::Rate(rate) => self.rate = rate,
            Setting::Storm(limits) => self.storm = limits,
        }
    }
}
