//! Xenbus: the states by which the two ends of a device tell each other how far they are.
//!
//! Source: `xen/include/public/io/xenbus.h`. A state is a decimal number in the node `state`.

pub mod key;
pub mod value;

use core::fmt;
use core::str::FromStr;

/// `enum xenbus_state`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum XenbusState {
    /// Nothing is known, or what stands there is no state.
    #[default]
    Unknown = 0,
    /// Starting.
    Initialising = 1,
    /// Early initialisation is done; waiting for the peer or for hotplug scripts.
    InitWait = 2,
    /// All of this end's keys are written; waiting for the peer to connect.
    Initialised = 3,
    /// Requests may flow.
    Connected = 4,
    /// Being closed, because of an error or an unplug.
    Closing = 5,
    /// Closed.
    Closed = 6,
    /// Being reconfigured.
    Reconfiguring = 7,
    /// Reconfigured.
    Reconfigured = 8,
}

impl XenbusState {
    /// Every state, in the order of its number.
    pub const ALL: [XenbusState; 9] = [
        XenbusState::Unknown,
        XenbusState::Initialising,
        XenbusState::InitWait,
        XenbusState::Initialised,
        XenbusState::Connected,
        XenbusState::Closing,
        XenbusState::Closed,
        XenbusState::Reconfiguring,
        XenbusState::Reconfigured,
    ];

    /// The state with this number.
    pub fn from_u8(value: u8) -> Option<XenbusState> {
        XenbusState::ALL.get(usize::from(value)).copied()
    }

    /// The number as it stands in the store.
    pub fn as_text(self) -> &'static str {
        ["0", "1", "2", "3", "4", "5", "6", "7", "8"][self as usize]
    }

    /// Xen's name for it.
    pub fn name(self) -> &'static str {
        match self {
            XenbusState::Unknown => "Unknown",
            XenbusState::Initialising => "Initialising",
            XenbusState::InitWait => "InitWait",
            XenbusState::Initialised => "Initialised",
            XenbusState::Connected => "Connected",
            XenbusState::Closing => "Closing",
            XenbusState::Closed => "Closed",
            XenbusState::Reconfiguring => "Reconfiguring",
            XenbusState::Reconfigured => "Reconfigured",
        }
    }
}

/// The text is not the decimal number of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAState;

impl fmt::Display for NotAState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a xenbus state (a number from 0 to 8)")
    }
}

impl core::error::Error for NotAState {}

impl FromStr for XenbusState {
    type Err = NotAState;

    /// Takes the number with white space around it, as `sscanf` in other implementations does.
    fn from_str(text: &str) -> Result<XenbusState, NotAState> {
        let number = text.trim_ascii().parse::<u8>().map_err(|_| NotAState)?;
        XenbusState::from_u8(number).ok_or(NotAState)
    }
}

impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_text_and_number_agree() {
        for (number, state) in XenbusState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
            assert_eq!(state.as_text().parse(), Ok(state));
        }
        assert_eq!(" 4\n".parse(), Ok(XenbusState::Connected));
        for bad in ["", "9", "-1", "4x", "256", "Connected"] {
            assert_eq!(bad.parse::<XenbusState>(), Err(NotAState), "{bad}");
        }
    }
}
