//! Our ends: the handshakes as their control loops carry them out, one access to the store at a time.

use xenbus::XenbusState::{self, Closed, Closing, Connected, Initialised};
use xenbus::handshake::back::{Follow, Handshake, Reconnect, Ring, follow};
use xenbus::handshake::front::{self, Manner};
use xenbus::{DeviceState, Failure, Keys, Update};

use super::explore::{End, Store};

/// How our backend behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) reconnect: Reconnect,
    /// A successor resumes the rings that it finds connected.
    pub(crate) resumes: bool,
    /// Requests in flight are completed before rings are released.
    pub(crate) stops_slowly: bool,
    /// New rings have the references and ports of the old ones.
    pub(crate) reuses_keys: bool,
}

/// How far a refresh has come: each is one access to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Read {
    Idle,
    Front(XenbusState),
    Own { front: XenbusState, own: XenbusState, online: bool },
    All { front: XenbusState, own: XenbusState, online: bool, ring: u8 },
}

/// Our backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Back {
    kind: Kind,
    /// None before the device is probed.
    handshake: Option<Handshake>,
    read: Read,
    serves: u8,
    stopping: bool,
}

impl Back {
    pub(crate) fn new(kind: Kind) -> Back {
        Back { kind, handshake: None, read: Read::Idle, serves: 0, stopping: false }
    }

    fn keys(&self, ring: u8) -> Keys {
        let value = if self.kind.reuses_keys { 8 } else { ring };
        if ring == 0 { Keys::new("/f") } else { Keys::new("/f").with("ring-ref", value).with("number", ring) }
    }

    /// What the driver makes of a new device.
    fn probe(&mut self, seen: &DeviceState, store: &Store) {
        let is_refused = seen.own_state == Closing && !seen.online;
        let is_connected = seen.other_state == Connected && (seen.own_state == Connected || is_refused);
        if self.kind.resumes && is_connected && number(&seen.other) == store.live && store.live != 0 {
            self.serves = store.live;
            self.handshake = Some(Handshake::resumed(self.kind.reconnect));
        } else {
            let handshake = Handshake::new(self.kind.reconnect, seen);
            let serves_detached = self.kind.reconnect == Reconnect::InitWait && !self.kind.resumes;
            self.handshake = Some(if serves_detached { handshake.serving_detached(seen) } else { handshake });
        }
    }

    /// Whether the store still has the states and the rings that were read.
    fn is_as_read(&self, seen: &DeviceState, store: &Store) -> bool {
        let same_rings =
            seen.other.is_empty() || seen.other == self.keys(store.ring) || self.kind.reuses_keys;
        (store.back, store.front) == (seen.own_state, seen.other_state) && same_rings
    }

    /// The end of a refresh.
    fn act(&self, seen: &DeviceState, store: &Store, fails: bool) -> (Back, Store, bool) {
        let mut device = Device { back: self.clone(), live: store.live, fails, tried: false };
        device.back.read = Read::Idle;
        if device.back.handshake.is_none() {
            device.back.probe(seen, store);
        }
        let mut update = Update::default();
        follow(&mut device, seen, &mut update);
        let mut after = store.clone();
        // The store is written only as it was read.
        match update.state {
            Some(_) if !self.is_as_read(seen, store) => after.back_event = true,
            Some(state) if state != seen.own_state => after.set_back(state),
            _ => {}
        }
        (device.back, after, device.tried)
    }
}

fn number(keys: &Keys) -> u8 {
    keys.or("number", 0).unwrap()
}

/// The backend while its handshake is followed.
struct Device {
    back: Back,
    live: u8,
    fails: bool,
    /// Connecting was tried, and failed by a disturbance or could have.
    tried: bool,
}

impl Follow for Device {
    fn handshake(&mut self) -> &mut Handshake {
        self.back.handshake.as_mut().unwrap()
    }

    fn ring(&self) -> Ring {
        match self.back.serves {
            0 => Ring::None,
            _ if self.back.stopping => Ring::Stopping,
            _ => Ring::Running,
        }
    }

    fn backend_keys(&mut self) -> Keys {
        Keys::default()
    }

    fn connect(&mut self, _: &Keys, other: &Keys) -> Result<bool, Failure> {
        assert_eq!(self.back.serves, 0, "connected twice");
        let ring = number(other);
        if ring != self.live || ring == 0 {
            return Err(Failure::new(22, "no such ring"));
        }
        self.tried = true;
        if self.fails {
            return Err(Failure::new(12, "failed"));
        }
        self.back.serves = ring;
        Ok(true)
    }

    fn disconnect(&mut self) {
        assert!(self.back.serves != 0 && !self.back.stopping, "disconnected twice");
        match self.back.kind.stops_slowly {
            true => self.back.stopping = true,
            false => self.back.serves = 0,
        }
    }
}

impl End for Back {
    fn steps(&self, store: &Store) -> Vec<(Back, Store)> {
        let mut steps = Vec::new();
        let mut after = store.clone();
        let mut back = self.clone();
        match self.read {
            Read::Idle if !store.back_event => {}
            Read::Idle => {
                after.back_event = false;
                back.read = Read::Front(store.front);
                steps.push((back, after));
            }
            Read::Front(front) => {
                back.read = Read::Own { front, own: store.back, online: store.online };
                steps.push((back, after));
            }
            Read::Own { front, own, online } => {
                let is_read = self.handshake.is_none() || own != Connected;
                let ready = matches!(front, Initialised | Connected) && is_read;
                back.read = Read::All { front, own, online, ring: if ready { store.ring } else { 0 } };
                steps.push((back, after));
            }
            Read::All { front, own, online, ring } => {
                let other = self.keys(ring);
                let own = DeviceState {
                    own_state: own,
                    other_state: front,
                    other,
                    online,
                    ..DeviceState::default()
                };
                let (back, after, tried) = self.act(&own, store, false);
                steps.push((back, after));
                if tried && store.left.failures > 0 {
                    let (back, mut after, _) = self.act(&own, store, true);
                    after.left.failures -= 1;
                    after.may_be_closed = true;
                    steps.push((back, after));
                }
            }
        }
        // The rings' thread ends, because it was told to or its frontend is gone, and wakes the loop.
        if self.serves != 0 && (self.stopping || self.serves != store.live) {
            let mut after = store.clone();
            after.back_event = true;
            steps.push((Back { serves: 0, stopping: false, ..self.clone() }, after));
        }
        steps
    }

    fn disturb(&self, store: &Store) -> Vec<(Back, Store)> {
        if store.left.back_restarts == 0 {
            return Vec::new();
        }
        let mut after = store.clone();
        after.left.back_restarts -= 1;
        after.back_event = true;
        vec![(Back::new(self.kind), after)]
    }

    fn ring(&self) -> u8 {
        self.serves
    }
}

/// What our frontend is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Following,
    /// The backend's state was read.
    Read(XenbusState, bool),
    /// The state was written, and the rings are to be dropped.
    Dropping,
    /// It closes: Closing was written.
    Closing,
    /// Closed was written.
    Closed,
}

/// Our frontend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Front {
    handshake: front::Handshake,
    written: XenbusState,
    doing: Doing,
    uses: u8,
}

impl Front {
    pub(crate) fn new(manner: Manner, found: XenbusState) -> Front {
        let handshake = front::Handshake::new(manner, found);
        Front { handshake, written: found, doing: Doing::Following, uses: 0 }
    }

    /// Writes this end's state.
    fn write(&mut self, state: XenbusState, store: &mut Store) {
        self.written = state;
        store.set_front(state);
    }

    fn drop_rings(&mut self, store: &mut Store) {
        self.uses = 0;
        store.live = 0;
    }

    /// As [`xenbus::frontend`] carries it out.
    fn act(&mut self, back: XenbusState, online: bool, store: &mut Store) {
        use front::Action;
        let before = self.handshake.clone();
        if store.front != self.written {
            self.written = store.front;
            self.handshake.restart(store.front);
            self.drop_rings(store);
            store.front_event = true;
            return;
        }
        let action = self.handshake.next(back, online);
        // It reads again after each action.
        store.front_event |= action != Action::Wait;
        let steps = matches!(action, Action::State(_) | Action::Offer | Action::Connected);
        // A step is written only if the store is as it was read.
        if steps && store.back != back {
            self.handshake = before;
            return;
        }
        match action {
            Action::Wait => {}
            Action::State(state) => {
                store.ring = 0;
                self.write(state, store);
                self.doing = Doing::Dropping;
            }
            Action::Offer => {
                store.new_ring();
                self.uses = store.live;
                self.write(self.handshake.manner().offers_with, store);
            }
            Action::Connected if self.written == Connected => {}
            Action::Connected => self.write(Connected, store),
            Action::Disconnect => self.drop_rings(store),
            Action::Close => self.write_closed(store),
        }
    }

    fn write_closed(&mut self, store: &mut Store) {
        self.handshake.closed();
        store.ring = 0;
        self.write(Closed, store);
        self.doing = Doing::Dropping;
    }
}

impl End for Front {
    fn steps(&self, store: &Store) -> Vec<(Front, Store)> {
        let mut front = self.clone();
        let mut after = store.clone();
        // The backend has closed its end of the event channel, which an interface takes for a failure.
        let mut steps = Vec::new();
        let is_lost = self.handshake.is_connected() && store.served != self.uses && self.uses != 0;
        if is_lost
            && self.handshake.manner().reopens
            && self.doing == Doing::Following
            && store.front == self.written
        {
            let mut front = self.clone();
            let mut after = store.clone();
            front.handshake.restart(Closed);
            after.ring = 0;
            front.write(Closed, &mut after);
            front.doing = Doing::Dropping;
            steps.push((front, after));
        }
        match self.doing {
            Doing::Following if store.front_event => {
                after.front_event = false;
                front.doing = Doing::Read(store.back, store.online);
            }
            Doing::Read(back, online) => {
                front.doing = Doing::Following;
                front.act(back, online, &mut after);
            }
            Doing::Dropping => {
                front.drop_rings(&mut after);
                front.doing = Doing::Following;
            }
            Doing::Closing if !matches!(store.back, Connected | Initialised) => {
                front.write(Closed, &mut after);
                front.doing = Doing::Closed;
            }
            Doing::Closed if !matches!(store.back, Connected | Closing) && front.uses != 0 => {
                front.drop_rings(&mut after);
            }
            _ => return steps,
        }
        steps.push((front, after));
        steps
    }

    fn disturb(&self, store: &Store) -> Vec<(Front, Store)> {
        let mut all = Vec::new();
        if store.left.front_restarts > 0 {
            let mut after = store.clone();
            after.left.front_restarts -= 1;
            after.live = 0;
            after.front_event = true;
            after.may_be_closed = false;
            all.push((Front::new(self.handshake.manner(), store.front), after));
        }
        if store.left.front_closes > 0 && self.doing == Doing::Following && !self.handshake.is_closed() {
            let mut after = store.clone();
            let mut front = self.clone();
            after.left.front_closes -= 1;
            after.may_be_closed = true;
            front.handshake.close();
            match matches!(self.written, Initialised | Connected) {
                true => {
                    front.write(Closing, &mut after);
                    front.doing = Doing::Closing;
                }
                false => {
                    front.write(Closed, &mut after);
                    front.doing = Doing::Closed;
                }
            }
            all.push((front, after));
        }
        all
    }

    fn ring(&self) -> u8 {
        if self.handshake.is_connected() { self.uses } else { 0 }
    }
}
