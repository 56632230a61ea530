//! The frontend's handshake: the backend's state in, actions out.
//!
//! A frontend that starts may find its own state, and its backend's, as an earlier frontend has left them: it ends that
//! connection first. A backend that publishes InitWait has started over, and gets new rings.

use ring_abi::xenbus::XenbusState;

/// How often rings are offered anew to a backend that is lost before it was Connected: to a killed one's successor. One that
/// refuses the rings looks the same until it says Closing.
const MOST_LOST: u8 = 2;

/// How the frontends of one kind of devices behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Manner {
    /// The state that is published with the rings: Initialised as Linux's blkfront does, or Connected, as Linux's netback
    /// acts on no other.
    pub offers_with: XenbusState,
    /// Whether the frontend connects again after the backend has closed, as nothing is lost by that.
    pub reopens: bool,
}

/// What to do. [`Handshake::next`] is called again until it returns [`Action::Wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait until something changes.
    Wait,
    /// Make new rings, and publish their keys with [`Manner::offers_with`].
    Offer,
    /// The backend is connected: publish Connected unless that is published; then requests may flow.
    Connected,
    /// The backend is gone without Closing: drop the rings, keep the state, and wait for its successor.
    Disconnect,
    /// Publish this state without the rings' keys, and drop the rings: a connection starts over.
    State(XenbusState),
    /// The backend closes, or the toolstack takes the device away: publish Closing if something is in flight, Closed once
    /// nothing is any more, and call [`Handshake::closed`].
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// No rings are published; this end's state in the store.
    Start(XenbusState),
    Offered,
    Connected,
    /// Connected to a backend that is gone.
    Disconnected,
    Closing,
    /// For good.
    Closed,
}

/// One frontend's handshake.
///
/// ```
/// use xenbus::XenbusState::{Connected, InitWait, Initialised, Initialising};
/// use xenbus::handshake::front::{Action, Handshake, Manner};
///
/// let mut handshake = Handshake::new(Manner { offers_with: Initialised, reopens: false }, Initialising);
/// assert_eq!(handshake.next(Initialising, true), Action::Wait);
/// assert_eq!(handshake.next(InitWait, true), Action::Offer);
/// assert_eq!(handshake.next(Connected, true), Action::Connected);
/// assert!(handshake.is_connected());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handshake {
    manner: Manner,
    stage: Stage,
    /// How many backends in turn were lost before they were Connected.
    lost: u8,
}

impl Handshake {
    /// The handshake of a frontend that starts and finds this state of its own in the store.
    pub fn new(manner: Manner, own: XenbusState) -> Handshake {
        Handshake { manner, stage: Stage::Start(own), lost: 0 }
    }

    /// How this frontend behaves.
    pub fn manner(&self) -> Manner {
        self.manner
    }

    /// Whether requests may flow.
    pub fn is_connected(&self) -> bool {
        self.stage == Stage::Connected
    }

    /// Whether [`Action::Close`] is not completed yet.
    pub fn is_closing(&self) -> bool {
        self.stage == Stage::Closing
    }

    /// Whether the device is closed, or closing, for good.
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed || self.stage == Stage::Closing && !self.manner.reopens
    }

    /// Records that Closed was published after [`Action::Close`].
    pub fn closed(&mut self) {
        let reopens = self.manner.reopens && self.stage != Stage::Closed;
        self.stage = if reopens { Stage::Start(XenbusState::Closed) } else { Stage::Closed };
    }

    /// Records that this end closes for good.
    pub fn close(&mut self) {
        self.stage = Stage::Closed;
    }

    /// Records that the rings are lost by no act of the backend's, and that this end's state in the store is `own`: the
    /// connection starts over.
    pub fn restart(&mut self, own: XenbusState) {
        if !matches!(self.stage, Stage::Closing | Stage::Closed) {
            self.stage = Stage::Start(own);
        }
    }

    /// Records that a backend which has taken the rings that were offered is gone before it was Connected: its successor cannot
    /// use them, and is offered others. `own` is this end's state in the store.
    pub fn lost_before_connected(&mut self, own: XenbusState) {
        if self.stage == Stage::Offered && self.lost < MOST_LOST {
            self.lost += 1;
            self.stage = Stage::Start(own);
        }
    }

    /// Returns what to do, given the backend's state (a missing node is Closed) and whether the toolstack wants the device:
    /// the backend's `online` is absent or not 0. A device that is in use is wanted as long as a backend serves it.
    pub fn next(&mut self, back: XenbusState, online: bool) -> Action {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
        let action = match (self.stage, back) {
            (Stage::Closing | Stage::Closed, _) => Action::Wait,
            (Stage::Start(own), _) => start(own, back, online),
            (_, Closing) => Action::Close,
            // Linux's blkback may write Connected over a toolstack's Closing.
            (_, Closed | Connected) if !online => Action::Close,
            (Stage::Offered, Connected) => Action::Connected,
            // Its process or domain was killed.
            (Stage::Connected, Closed | Initialising) => Action::Disconnect,
            // Its successor serves it no more than to have it closed.
            (Stage::Connected | Stage::Disconnected, InitWait) if !online => Action::Close,
            // So that no successor of the backend takes the old rings for the new ones.
            (Stage::Connected | Stage::Disconnected, InitWait) => Action::State(Initialising),
            (Stage::Disconnected, Connected | Initialised) => start(Connected, back, online),
            _ => Action::Wait,
        };
        if action == Action::Connected {
            self.lost = 0;
        }
        self.stage = match action {
            Action::Wait => self.stage,
            Action::State(own) => Stage::Start(own),
            Action::Offer => Stage::Offered,
            Action::Connected => Stage::Connected,
            Action::Disconnect => Stage::Disconnected,
            Action::Close => Stage::Closing,
        };
        action
    }
}

/// Starts a connection, after ending an earlier one that was not closed. Linux's blkback accepts Initialising only while it
/// is Closed, and reads this end's state only as it is now: each step waits for the backend's reaction.
fn start(own: XenbusState, back: XenbusState, online: bool) -> Action {
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
    match (own, back) {
        (Closed, Closing | Closed | InitWait) if !online => Action::Wait,
        (_, Closing | Closed | InitWait) if !online => Action::Close,
        (Closing | Closed, Connected | Initialised) | (Closed, Closing) => Action::Wait,
        (_, Connected | Initialised) => Action::State(Closing),
        (_, Closing) => Action::State(Closed),
        (Initialising, InitWait) => Action::Offer,
        (Initialising, _) => Action::Wait,
        _ => Action::State(Initialising),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::{Connected, InitWait, Initialised, Initialising};

    /// The frontend offers rings to a backend that takes them and is lost; whether it offers others.
    fn offers_others_after_a_loss(handshake: &mut Handshake) -> bool {
        handshake.lost_before_connected(Initialised);
        handshake.next(InitWait, true) == Action::State(Initialising)
            && handshake.next(InitWait, true) == Action::Offer
    }

    #[test]
    fn backends_lost_before_connected_are_offered_other_rings_a_few_times() {
        let mut handshake = Handshake::new(Manner { offers_with: Initialised, reopens: false }, Initialising);
        assert_eq!(handshake.next(InitWait, true), Action::Offer);
        for _ in 0..MOST_LOST {
            assert!(offers_others_after_a_loss(&mut handshake));
        }
        let mut refused = handshake.clone();
        assert!(!offers_others_after_a_loss(&mut refused));

        assert_eq!(handshake.next(Connected, true), Action::Connected);
        assert_eq!(handshake.next(InitWait, true), Action::State(Initialising));
        assert_eq!(handshake.next(InitWait, true), Action::Offer);
        assert!(offers_others_after_a_loss(&mut handshake));
    }
}
