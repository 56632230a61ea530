//! The backend's handshake: both ends' states and keys in, actions out; and [`follow`], which carries the actions out for
//! every driver alike.
//!
//! A backend that starts may find a frontend that is connected to its predecessor. Unless it resumes that connection, the
//! frontend has to publish new rings: requests may have been answered out of order on the old ones, whose indexes therefore
//! do not show which were lost. [`Reconnect`] says how the frontend is made to.

use core::time::Duration;

use ring_abi::blkif::key::RING_REF;
use ring_abi::netif::key;
use ring_abi::xenbus::XenbusState;
use ring_abi::xenbus::key::EVENT_CHANNEL;

use crate::device_state::{DeviceState, Failure, Update};
use crate::keys::Keys;

/// The most keys by which rings are told apart; a guest may write any number. Eight queues of a disk, of sixteen pages
/// each, have 136.
const MOST_RING_KEYS: usize = 192;

/// How often rings are tried that cannot be served because of something that may pass. By their number, as a try may take
/// long; the pauses are two seconds in all.
const MOST_TRIES: u8 = 11;
/// The pause before the second try; each is twice as long as the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// How the frontend of a predecessor's ring is made to publish a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reconnect {
    /// By InitWait: the frontend keeps its requests and sends them again over a ring with other keys. For disks, whose
    /// frontends close for good when the backend does.
    InitWait,
    /// By Closing and Closed, so that each end waits for the other. For frontends that have nothing to keep and go from
    /// Initialising straight to Connected: either end might miss the other's states without these.
    Closing,
}

/// The rings that a device serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ring {
    /// None, or they have failed and nothing uses them any more.
    None,
    /// They are served.
    Running,
    /// They are told to stop, and their requests in flight complete.
    Stopping,
}

/// What to do. [`Handshake::next`] is called again until it returns [`Action::Wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait until something changes.
    Wait,
    /// Publish the backend's keys and InitWait.
    Offer,
    /// Connect to the rings that the frontend's keys name; then report [`Ring::Running`], or call [`Handshake::failed`].
    Connect,
    /// Publish the backend's keys and Connected.
    Connected,
    /// Stop serving the rings: the frontend has closed.
    Disconnect,
    /// Publish this state.
    State(XenbusState),
}

/// One backend's handshake.
///
/// ```
/// use xenbus::XenbusState::{Connected, InitWait, Initialised, Initialising};
/// use xenbus::handshake::back::{Action, Handshake, Reconnect, Ring};
/// use xenbus::{DeviceState, Keys};
///
/// let mut seen = DeviceState { own_state: Initialising, other_state: Initialising, online: true, ..Default::default() };
/// let mut handshake = Handshake::new(Reconnect::InitWait, &seen);
/// handshake.update(&seen);
/// assert_eq!(handshake.next(&seen, Ring::None), Action::Offer);
///
/// seen = DeviceState { own_state: InitWait, other_state: Initialised, ..seen };
/// seen.other = Keys::new("/local/domain/1/device/vbd/51712").with("ring-ref", 8).with("event-channel", 3);
/// handshake.update(&seen);
/// assert_eq!(handshake.next(&seen, Ring::None), Action::Connect);
/// assert_eq!(handshake.next(&seen, Ring::Running), Action::Connected);
/// assert_eq!(handshake.state(), Connected);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handshake {
    reconnect: Reconnect,
    /// The state that this backend last published; Unknown before the first.
    state: XenbusState,
    /// `state` and the store's state of this end, before what was decided after the last [`Handshake::update`].
    before: (XenbusState, XenbusState),
    stale: Stale,
    /// The keys of the rings that were connected last.
    connected: Keys,
    /// How often they could not be connected.
    tries: u8,
    /// The toolstack wants the device closed, as of the last [`Handshake::update`].
    unwanted: bool,
    /// The state in the store is not the one published: another process overwrote it.
    overwritten: bool,
    /// The frontend was connected to a predecessor, and is served once more although the toolstack wants the device closed.
    owed: bool,
    /// This backend has been Connected.
    was_connected: bool,
}

/// Whether the frontend's rings were made for a predecessor of this backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stale {
    /// They are for this backend.
    No,
    /// They are a predecessor's, and their keys are not read yet.
    Unread,
    /// They are a predecessor's, with these keys.
    Ring(Keys),
}

impl Handshake {
    /// The handshake of a backend that starts and finds these states and keys.
    pub fn new(reconnect: Reconnect, found: &DeviceState) -> Handshake {
        use XenbusState::{Closed, Connected, Initialising, Unknown};
        // A backend that is Closed has seen its frontend release the rings.
        let is_unused = matches!(found.own_state, Unknown | Initialising | Closed);
        let is_stale = reconnect == Reconnect::InitWait && found.other_state == Connected && !is_unused;
        let stale = if is_stale { Stale::Unread } else { Stale::No };
        Handshake { stale, ..Handshake::at(reconnect, Unknown) }
    }

    /// Has a frontend that is connected to a predecessor reconnect even where the toolstack wants the device closed: its guest may
    /// use the device, and has refused. Then it closes when it will, as with the predecessor. For frontends that reconnect on
    /// InitWait, and close on it where they are not used.
    #[must_use]
    pub fn serving_detached(mut self, found: &DeviceState) -> Handshake {
        use XenbusState::{Closing, Connected, InitWait, Initialised, Initialising};
        self.owed = !found.online
            && match found.own_state {
                // A predecessor that had begun to serve it once more; toolstacks write Closing.
                InitWait => matches!(found.other_state, Initialising | Initialised | Connected),
                Initialised | Connected | Closing => matches!(found.other_state, Initialised | Connected),
                _ => false,
            };
        self
    }

    /// The handshake of a backend that has resumed its predecessor's rings.
    pub fn resumed(reconnect: Reconnect) -> Handshake {
        Handshake { was_connected: true, ..Handshake::at(reconnect, XenbusState::Connected) }
    }

    fn at(reconnect: Reconnect, state: XenbusState) -> Handshake {
        let before = (state, state);
        Handshake {
            reconnect,
            state,
            before,
            stale: Stale::No,
            connected: Keys::default(),
            tries: 0,
            unwanted: false,
            overwritten: false,
            owed: false,
            was_connected: false,
        }
    }

    /// The state that this backend last published.
    pub fn state(&self) -> XenbusState {
        self.state
    }

    /// Records that connecting failed: Closing is published.
    pub fn failed(&mut self) {
        self.state = XenbusState::Closing;
    }

    /// Records that connecting failed because of something that may pass, and returns the pause before the next try; `None`
    /// if it has been tried often enough.
    fn pause(&mut self) -> Option<Duration> {
        self.tries += 1;
        if self.tries == MOST_TRIES {
            self.tries = 0;
            return None;
        }
        Some((FIRST_PAUSE * (1 << (self.tries - 1))).min(LONGEST_PAUSE))
    }

    /// Records both ends' states after a change. Then [`Handshake::next`] returns what to do. A state that was to be
    /// published is taken for refused where the store still has the one before: an end's write is refused if the other end
    /// has changed its state meanwhile, and everything is decided anew.
    pub fn update(&mut self, seen: &DeviceState) {
        use XenbusState::{Closed, Closing, Connected, Unknown};
        let (before, before_in_store) = self.before;
        if seen.own_state != self.state && seen.own_state == before_in_store {
            self.state = before;
        }
        self.before = (self.state, seen.own_state);
        if seen.other_state != Connected {
            self.stale = Stale::No;
        }
        // libxl closes by `online` = 0 and `state` = Closing. The state alone closes too, until the next update.
        let written = seen.own_state == Closing && !matches!(self.state, Unknown | Closing | Closed);
        // A frontend that saw Closing before it has followed Connected would wait for that.
        let is_served = [self.state, seen.own_state, seen.other_state] == [Connected; 3];
        self.owed &= !seen.online && !is_served && !matches!(seen.other_state, Closing | Closed);
        self.unwanted = (!seen.online || written) && !self.owed;
        self.overwritten = seen.own_state != self.state && self.state != Unknown;
    }

    /// Returns what to do, given both ends' states and keys as of the last update, and the rings now.
    pub fn next(&mut self, seen: &DeviceState, ring: Ring) -> Action {
        let mut action = self.decide(seen, ring);
        // While rings stop the device closes, and the state that was published does not hold any more.
        if action == Action::Wait && self.overwritten && ring != Ring::Stopping {
            action = self.publish_again();
        }
        self.overwritten &= matches!(action, Action::Wait | Action::Connect | Action::Disconnect);
        match action {
            Action::Offer => self.state = XenbusState::InitWait,
            Action::Connected => {
                self.state = XenbusState::Connected;
                self.was_connected = true;
            }
            Action::State(state) => self.state = state,
            Action::Connect => {
                let keys = ring_keys(&seen.other);
                if keys != self.connected {
                    self.connected = keys;
                    self.tries = 0;
                }
            }
            Action::Wait | Action::Disconnect => {}
        }
        action
    }

    /// With the keys, which may not have been written either.
    fn publish_again(&self) -> Action {
        match self.state {
            XenbusState::InitWait => Action::Offer,
            XenbusState::Connected => Action::Connected,
            state => Action::State(state),
        }
    }

    fn decide(&mut self, seen: &DeviceState, ring: Ring) -> Action {
        use XenbusState::{Closed, Closing, Connected, Initialised, Initialising};
        let failed = ring == Ring::None && self.state == Connected;
        match (seen.other_state, ring) {
            (_, Ring::Stopping) => Action::Wait,
            (Initialised | Connected, _) if failed || self.unwanted => self.close(seen, ring),
            (Initialised | Connected, _) => self.connect(seen, ring),
            (Closing, _) => self.close(seen, ring),
            // The frontend has released its rings, or has none.
            (Initialising | Closed, Ring::Running) => Action::Disconnect,
            (Initialising | Closed, Ring::None) => self.released(seen),
            // A state that is malformed, or means nothing here, is ignored.
            (_, Ring::Running) if self.unwanted => Action::Disconnect,
            (_, Ring::None) if self.unwanted => self.state_once(Closed),
            _ => Action::Wait,
        }
    }

    /// The state that this backend or its predecessor has published.
    fn position(&self, seen: &DeviceState) -> XenbusState {
        if self.state == XenbusState::Unknown { seen.own_state } else { self.state }
    }

    /// The frontend has to follow to Closed. A backend that is Closed has done its part, and would wait for ever if the
    /// frontend has too.
    fn close(&self, seen: &DeviceState, ring: Ring) -> Action {
        match self.position(seen) {
            XenbusState::Closed => self.state_once(XenbusState::Closed),
            XenbusState::Closing if self.has_lost(seen, ring) => self.state_once(XenbusState::Closed),
            _ => self.state_once(XenbusState::Closing),
        }
    }

    /// Whether rings have failed for which a frontend in use was waited: no successor will serve it either.
    fn has_lost(&self, seen: &DeviceState, ring: Ring) -> bool {
        self.was_connected && !seen.online && ring == Ring::None && seen.other_state == XenbusState::Connected
    }

    /// The action for a frontend that is Closed or Initialising, none of whose rings are served.
    fn released(&self, seen: &DeviceState) -> Action {
        use XenbusState::{Closed, InitWait, Initialising, Unknown};
        let has_started = !matches!(self.position(seen), Unknown | Initialising | InitWait);
        match seen.other_state {
            _ if self.unwanted => self.state_once(Closed),
            // It waits for this end to be Closed, and may then start again.
            Closed if has_started => self.state_once(Closed),
            _ if self.state != InitWait => Action::Offer,
            _ => Action::Wait,
        }
    }

    /// The action for a frontend that is Initialised or Connected.
    fn connect(&mut self, seen: &DeviceState, ring: Ring) -> Action {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialising, Unknown};
        match (self.state, ring) {
            (InitWait, Ring::Running) if self.connected == ring_keys(&seen.other) => Action::Connected,
            // Connected was refused, as the frontend had started over.
            (InitWait, Ring::Running) => Action::Disconnect,
            // These keys were read before this backend's InitWait was published: the ring is the predecessor's.
            (InitWait, _) if seen.own_state == Connected => Action::Wait,
            (InitWait, _) if self.is_stale(&seen.other) || seen.other.is_empty() => Action::Wait,
            (InitWait, _) => Action::Connect,
            // The predecessor was closing: the frontend has to follow.
            (Unknown, _) if seen.own_state == Closing && !self.owed => Action::Wait,
            (Unknown, _) if self.reconnect == Reconnect::Closing => match seen.own_state {
                // The frontend skips InitWait, or has waited for a backend.
                Unknown | Initialising | InitWait | Closed => Action::Offer,
                _ => Action::State(Closing),
            },
            (Unknown | Closed, _) => Action::Offer,
            _ => Action::Wait,
        }
    }

    /// Whether the frontend's rings are still the predecessor's.
    fn is_stale(&mut self, keys: &Keys) -> bool {
        match &self.stale {
            Stale::No => false,
            Stale::Unread => {
                if !keys.is_empty() {
                    self.stale = Stale::Ring(ring_keys(keys));
                }
                true
            }
            Stale::Ring(old) if *old == ring_keys(keys) => true,
            Stale::Ring(_) => {
                self.stale = Stale::No;
                false
            }
        }
    }

    fn state_once(&self, state: XenbusState) -> Action {
        if self.state == state { Action::Wait } else { Action::State(state) }
    }
}

/// The keys that identify rings, of whatever kind the device is.
pub(crate) fn ring_keys(keys: &Keys) -> Keys {
    let mut ring = Keys::default();
    ring.extend(keys.iter().filter(|(name, _)| identifies_rings(name)).take(MOST_RING_KEYS));
    ring
}

/// Whether a key names a ring's page or an event channel, such as `ring-ref3`, `queue-1/tx-ring-ref` and `event-channel-rx`.
fn identifies_rings(name: &str) -> bool {
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    stem == RING_REF
        || matches!(name, key::TX_RING_REF | key::RX_RING_REF | key::CTRL_RING_REF)
        || matches!(
            name,
            EVENT_CHANNEL | key::EVENT_CHANNEL_TX | key::EVENT_CHANNEL_RX | key::EVENT_CHANNEL_CTRL
        )
}

/// A device whose handshake [`follow`] carries out.
pub trait Follow {
    /// The device's handshake.
    fn handshake(&mut self) -> &mut Handshake;

    /// The rings that are served.
    fn ring(&self) -> Ring;

    /// The keys that the backend publishes with InitWait and with Connected.
    fn backend_keys(&mut self) -> Keys;

    /// Starts to serve the rings that the frontend's keys `other` name. `own` are this end's keys, those to be published
    /// included. `false` where it cannot be done yet, and the device is woken when it may be.
    ///
    /// # Errors
    /// The keys are invalid or the rings cannot be served: the failure is reported and the device closes. If it may pass it is
    /// tried again for a while: a frontend may be about to replace rings that it offered to an earlier backend, which
    /// may not have let go of them.
    fn connect(&mut self, own: &Keys, other: &Keys) -> Result<bool, Failure>;

    /// Stops serving the rings; those whose requests in flight have to complete are [`Ring::Stopping`].
    fn disconnect(&mut self);
}

/// Carries out what a device's handshake says after a change, and adds to `update` what is to be written.
pub fn follow(device: &mut impl Follow, seen: &DeviceState, update: &mut Update) {
    device.handshake().update(seen);
    loop {
        let ring = device.ring();
        match device.handshake().next(seen, ring) {
            Action::Wait => return,
            Action::Offer => publish(device, update, XenbusState::InitWait),
            Action::Connected => publish(device, update, XenbusState::Connected),
            Action::State(state) => update.state = Some(state),
            Action::Disconnect => device.disconnect(),
            Action::Connect => {
                let mut own = seen.own.clone();
                own.extend(update.keys.iter());
                match device.connect(&own, &seen.other) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(failure) if failure.may_pass => match device.handshake().pause() {
                        None => fail(device, update, failure),
                        pause => {
                            update.again = pause;
                            return;
                        }
                    },
                    Err(failure) => fail(device, update, failure),
                }
            }
        }
    }
}

/// Has a device close because its rings cannot be served: the failure is reported, and Closing published.
pub fn fail(device: &mut impl Follow, update: &mut Update, failure: Failure) {
    device.handshake().failed();
    update.error = Some(failure);
    update.state = Some(XenbusState::Closing);
}

fn publish(device: &mut impl Follow, update: &mut Update, state: XenbusState) {
    let keys = device.backend_keys();
    update.keys.extend(keys.iter());
    update.state = Some(state);
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::{Closed, Closing, InitWait, Initialised};
    use alloc::format;

    /// Connected would have Linux's blkfront, which is Closed, make its rings again: a BUG of its kernel.
    #[test]
    fn closing_of_the_toolstack_is_not_overwritten_while_rings_stop_for_a_frontend_that_has_closed() {
        let mut seen =
            DeviceState { own_state: InitWait, other_state: Initialised, online: true, ..Default::default() };
        seen.other =
            Keys::new("/local/domain/0/device/vbd/51856").with("ring-ref", 8).with("event-channel", 3);
        let mut handshake = Handshake { state: InitWait, ..Handshake::new(Reconnect::InitWait, &seen) };
        handshake.update(&seen);
        assert_eq!(handshake.next(&seen, Ring::None), Action::Connect);
        assert_eq!(handshake.next(&seen, Ring::Running), Action::Connected);
        seen = DeviceState { own_state: Closing, other_state: Closed, online: false, ..seen };
        handshake.update(&seen);
        assert_eq!(handshake.next(&seen, Ring::Running), Action::Disconnect);
        assert_eq!(handshake.next(&seen, Ring::Stopping), Action::Wait);
        handshake.update(&seen);
        assert_eq!(handshake.next(&seen, Ring::None), Action::State(Closed));
    }

    #[test]
    fn rings_are_told_apart_by_the_keys_that_name_them_and_by_a_bounded_number() {
        let names = ["ring-ref", "ring-ref15", "queue-1/tx-ring-ref", "event-channel-rx", "ctrl-ring-ref"];
        let mut keys = Keys::default();
        keys.extend(names.map(|name| (name, 1)));
        let rings = ring_keys(&keys);
        assert_eq!(rings.len(), names.len());
        keys.extend(
            ["protocol", "feature-split-event-channels", "my-ring-ref", "ring-ref-x"].map(|name| (name, 1)),
        );
        assert_eq!(ring_keys(&keys), rings);
        keys.extend((0..1000).map(|page| (format!("ring-ref{page}"), page)));
        assert_eq!(ring_keys(&keys).len(), MOST_RING_KEYS);
    }
}
