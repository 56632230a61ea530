//! A port's flags, by the names of bridge(8): what it may do beside sending to the port of a known station.

use std::fmt;

/// The flags of a port. A wire has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags([bool; Flags::NAMES.len()]);

/// One of a port's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Flag {
    /// Frames from one port with this flag are not sent to another.
    Isolated,
    /// The sources of its frames are learned.
    Learning,
    /// It is sent frames for stations of which no port is known.
    Flood,
    /// It is sent multicasts.
    McastFlood,
    /// It is sent broadcasts.
    BcastFlood,
    /// Frames from it may be sent back to it.
    Hairpin,
    /// No frame of the spanning tree protocol is taken from it. Linux's bridge disables the port for one, where it has that protocol; here the
    /// frame is dropped, so that a guest cannot have its interface down, and an administrator has nothing to put right.
    Guard,
    /// Frames are taken from the stations alone that an entry of the forwarding database says are there.
    Locked,
}

impl Flag {
    /// Every flag, in the order of [`Flags::NAMES`].
    pub const ALL: [Flag; 8] = [
        Flag::Isolated,
        Flag::Learning,
        Flag::Flood,
        Flag::McastFlood,
        Flag::BcastFlood,
        Flag::Hairpin,
        Flag::Guard,
        Flag::Locked,
    ];

    /// Its name in configurations, as that of `bridge link set`.
    pub fn name(self) -> &'static str {
        Flags::NAMES[self as usize]
    }

    /// Whether a port has it that says nothing.
    pub const fn default_value(self) -> bool {
        !matches!(self, Flag::Isolated | Flag::Hairpin | Flag::Guard | Flag::Locked)
    }
}

impl Flags {
    /// The flags' names.
    pub const NAMES: [&'static str; 8] =
        ["isolated", "learning", "flood", "mcast_flood", "bcast_flood", "hairpin", "guard", "locked"];
    /// What [`Flags::parse`] reads, in words.
    pub const EXPECTED: &'static str = "on or off";

    /// Reads the value of a flag.
    pub fn parse(text: &str) -> Option<bool> {
        match text {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        }
    }

    /// The text of a flag's value.
    pub fn text(value: bool) -> &'static str {
        if value { "on" } else { "off" }
    }

    /// Whether the port has this flag.
    #[inline]
    pub fn has(&self, flag: Flag) -> bool {
        self.0[flag as usize]
    }

    /// Gives the port the flag, or takes it.
    pub fn set(&mut self, flag: Flag, value: bool) {
        self.0[flag as usize] = value;
    }
}

impl Default for Flags {
    fn default() -> Flags {
        Flags(Flag::ALL.map(Flag::default_value))
    }
}

/// Those that are not the default.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut others =
            Flag::ALL.into_iter().filter(|flag| self.has(*flag) != flag.default_value()).peekable();
        if others.peek().is_none() {
            return f.write_str("default");
        }
        while let Some(flag) = others.next() {
            let blank = if others.peek().is_some() { " " } else { "" };
            write!(f, "{}={}{blank}", flag.name(), Flags::text(self.has(flag)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_defaults_of_linuxs_bridge_and_are_shown_where_they_differ() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "default");
        assert_eq!(
            Flag::ALL.map(|flag| flags.has(flag)),
            [false, true, true, true, true, false, false, false]
        );
        flags.set(Flag::Isolated, true);
        flags.set(Flag::McastFlood, false);
        assert_eq!(flags.to_string(), "isolated=on mcast_flood=off");
        assert_eq!(["on", "off", "1", ""].map(Flags::parse), [Some(true), Some(false), None, None]);
    }
}
