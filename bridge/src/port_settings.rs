//! What a port may send and is sent, as the administrator or the toolstack has set it: in force from its first frame on.

use crate::{Addresses, Flags, Lock, StormLimits, Vlans, fdb::Mac, rate_limit::RateLimits};

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
    Rate(RateLimits),
    /// [`PortSettings::rate_in`].
    RateIn(RateLimits),
    /// [`PortSettings::storm`].
    Storm(StormLimits),
}

/// What a port may send and is sent. The default is anything.
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
    /// The rate at which frames are received from the port: the others wait there.
    pub rate: RateLimits,
    /// The rate at which the port is sent frames: others wait for it in the bridge, as far as they fit.
    pub rate_in: RateLimits,
    /// The bounds of what the port may send to many.
    pub storm: StormLimits,
}

impl PortSettings {
    /// What is to be set to make these the others, but for the address, which a port keeps. What is as it was is left alone: VLANs and a lock
    /// that are set anew forget what was learned.
    pub fn changes_to(self, other: PortSettings) -> Vec<Setting> {
        let PortSettings { address: _, lock, allowed, vlans, flags, rate, rate_in, storm } = other;
        let changes = [
            (self.lock != lock || self.allowed != allowed).then_some(Setting::Lock(lock, allowed)),
            (self.vlans != vlans).then_some(Setting::Vlans(vlans)),
            (self.flags != flags).then_some(Setting::Flags(flags)),
            (self.rate != rate).then_some(Setting::Rate(rate)),
            (self.rate_in != rate_in).then_some(Setting::RateIn(rate_in)),
            (self.storm != storm).then_some(Setting::Storm(storm)),
        ];
        changes.into_iter().flatten().collect()
    }

    /// Makes one of them another.
    pub fn change(&mut self, setting: Setting) {
        match setting {
            Setting::Lock(lock, allowed) => {
                self.lock = lock;
                self.allowed = allowed;
            }
            Setting::Vlans(vlans) => self.vlans = vlans,
            Setting::Flags(flags) => self.flags = flags,
            Setting::Rate(rate) => self.rate = rate,
            Setting::RateIn(rate) => self.rate_in = rate,
            Setting::Storm(limits) => self.storm = limits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Flag;

    #[test]
    fn changes_are_of_what_differs_and_make_the_others() {
        let mut other = PortSettings { vlans: "10p/20".parse().unwrap(), ..PortSettings::default() };
        other.flags.set(Flag::Isolated, true);
        let changes = PortSettings::default().changes_to(other.clone());
        assert_eq!(changes.len(), 2, "{changes:?}");
        let mut settings = PortSettings::default();
        changes.into_iter().for_each(|change| settings.change(change));
        assert_eq!(settings, other);
        assert_eq!(other.clone().changes_to(other), []);
    }
}
