//! Models of stock ends, from what their sources do: they act on the other end's state as they read it, and write without
//! looking again: frontends a moment later, backends at once, but xen-netback by several writes.

use xenbus::XenbusState::{self, Closed, Closing, Connected, InitWait, Initialised, Initialising};

use super::explore::{End, Store};

/// A stock frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Driver {
    /// The state that is written with the rings.
    pub(crate) offers_with: XenbusState,
    /// It connects when it starts, whatever the backend's state is: to InitWait only otherwise.
    pub(crate) skips: bool,
    /// A backend that is Connected is connected to from Initialising too (Linux's blkfront).
    pub(crate) late: bool,
    /// A kernel that starts ends the connection of the one before it.
    pub(crate) resets: bool,
}

/// Linux's xen-blkfront; Windows' xenvbd is like it.
pub(crate) const BLKFRONT: Driver =
    Driver { offers_with: Initialised, skips: false, late: true, resets: true };
/// Unikraft's blkfront.
pub(crate) const SKIPPING: Driver =
    Driver { offers_with: Connected, skips: true, late: false, resets: false };
/// Linux's xen-netfront, FreeBSD's netfront and Windows' xenvif.
pub(crate) const NETFRONT: Driver =
    Driver { offers_with: Connected, skips: false, late: false, resets: true };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Following,
    Read(XenbusState),
    /// Closes and connects again, by 5, 6 and 1, each once the backend has followed: a driver that is loaded again, or reset.
    Reset(XenbusState),
}

/// A stock frontend's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Front {
    driver: Driver,
    /// `dev->state`: the state that it wrote last.
    state: XenbusState,
    doing: Doing,
    uses: u8,
}

impl Front {
    pub(crate) fn new(driver: Driver) -> Front {
        Front { driver, state: Initialising, doing: Doing::Following, uses: 0 }
    }

    fn write(&mut self, state: XenbusState, store: &mut Store) {
        if self.state != state {
            self.state = state;
            store.set_front(state);
        }
    }

    fn offer(&mut self, store: &mut Store) {
        store.new_ring();
        self.uses = store.live;
        self.write(self.driver.offers_with, store);
    }

    fn drop_rings(&mut self, store: &mut Store) {
        self.uses = 0;
        store.live = 0;
    }

    fn follow(&mut self, back: XenbusState, store: &mut Store) {
        match (back, self.state) {
            (InitWait, Initialising) => self.offer(store),
            (Connected, Initialised) => self.write(Connected, store),
            (Connected, Initialising) if self.driver.late => {
                self.offer(store);
                self.write(Connected, store);
            }
            (Connected, Closing | Closed) if self.driver.late => {
                panic!("Linux's blkfront would make rings again: BUG_ON(info->nr_rings) in negotiate_mq")
            }
            (Closed, Closed) => {}
            // A frontend that has not started connecting follows too.
            (Closing | Closed, _) if back == Closing || self.state != Initialising => {
                self.write(Closed, store);
                self.drop_rings(store);
            }
            _ => {}
        }
    }

    /// The next step of a reset; `None` while it waits.
    fn reset(&mut self, at: XenbusState, store: &mut Store) -> bool {
        self.doing = match (at, store.back) {
            (Closing, Closing | Closed) => {
                self.write(Closed, store);
                Doing::Reset(Closed)
            }
            (Closed, Closed) => {
                self.drop_rings(store);
                store.ring = 0;
                store.front_event = true;
                self.write(Initialising, store);
                Doing::Following
            }
            _ => return false,
        };
        true
    }
}

impl End for Front {
    fn steps(&self, store: &Store) -> Vec<(Front, Store)> {
        let mut front = self.clone();
        let mut after = store.clone();
        let stepped = match self.doing {
            Doing::Following if self.driver.skips && self.state == Initialising => {
                front.offer(&mut after);
                true
            }
            Doing::Following if store.front_event => {
                after.front_event = false;
                front.doing = Doing::Read(store.back);
                true
            }
            Doing::Following => false,
            Doing::Read(back) => {
                front.doing = Doing::Following;
                front.follow(back, &mut after);
                true
            }
            Doing::Reset(at) => front.reset(at, &mut after),
        };
        if stepped { vec![(front, after)] } else { Vec::new() }
    }

    fn disturb(&self, store: &Store) -> Vec<(Front, Store)> {
        let mut all = Vec::new();
        if store.left.front_restarts > 0 && self.driver.resets {
            // As xenbus_reset_frontend of Linux, by the backend's state as the new kernel finds it.
            let mut after = store.clone();
            after.left.front_restarts -= 1;
            after.live = 0;
            after.front_event = true;
            let mut front = Front { state: store.front, doing: Doing::Following, uses: 0, ..self.clone() };
            match store.back {
                Connected => {
                    front.write(Closing, &mut after);
                    front.doing = Doing::Reset(Closing);
                }
                Closing => {
                    front.write(Closed, &mut after);
                    front.doing = Doing::Reset(Closed);
                }
                _ => front.write(Initialising, &mut after),
            }
            all.push((front, after));
        }
        if store.left.front_closes > 0
            && self.doing == Doing::Following
            && self.state == Connected
            && store.online
            && self.driver.resets
        {
            let mut after = store.clone();
            let mut front = self.clone();
            after.left.front_closes -= 1;
            front.write(Closing, &mut after);
            front.doing = Doing::Reset(Closing);
            all.push((front, after));
        }
        all
    }

    fn ring(&self) -> u8 {
        self.uses
    }
}

/// Which stock backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Server {
    /// Linux's xen-blkback.
    Blkback,
    /// Linux's xen-netback, which writes every state on its way to the one it answers with.
    Netback,
    /// QEMU's disks.
    Qemu,
}

/// A stock backend's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Back {
    server: Server,
    /// `dev->state`: the state that it wrote last.
    state: XenbusState,
    /// The frontend's state that it still acts on, by several states of its own.
    goal: Option<XenbusState>,
    serves: u8,
}

impl Back {
    /// As it is after its probe.
    pub(crate) fn new(server: Server) -> Back {
        Back { server, state: Initialising, goal: None, serves: 0 }
    }

    fn write(&mut self, state: XenbusState, store: &mut Store) {
        if self.state != state {
            self.state = state;
            store.set_back(state);
        }
    }

    fn connect(&mut self, store: &mut Store) {
        // Mapping fails where the frontend is gone: the state stays, and the next event tries again.
        if store.live != 0 && store.ring == store.live {
            self.serves = store.live;
            self.write(Connected, store);
        }
    }

    /// Acts on the frontend's state; `false` if another step is to follow.
    fn follow(&mut self, front: XenbusState, store: &mut Store) -> bool {
        match self.server {
            Server::Netback => return self.follow_by_steps(front, store),
            Server::Blkback | Server::Qemu => {}
        }
        match front {
            Initialising if self.state == Closed && store.online => self.write(InitWait, store),
            Initialised | Connected if self.state != Connected => {
                self.serves = 0;
                self.connect(store);
            }
            Closing => self.write(Closing, store),
            Closed => {
                // A toolstack's Closing in the store is overwritten though it was Closed itself.
                self.serves = 0;
                self.write(Closed, store);
                if store.back != Closed {
                    store.set_back(Closed);
                }
            }
            _ => {}
        }
        true
    }

    fn follow_by_steps(&mut self, front: XenbusState, store: &mut Store) -> bool {
        let goal = match front {
            Initialising if store.online => InitWait,
            Connected | Closing | Closed => front,
            _ => return true,
        };
        let next = match (self.state, goal) {
            (state, goal) if state == goal => {
                if store.back != state && goal == Closed {
                    store.set_back(state);
                }
                return true;
            }
            (Closed, InitWait | Connected) => InitWait,
            (Closed, _) => Closing,
            (InitWait, Connected) => {
                self.connect(store);
                return true;
            }
            (InitWait | Connected, InitWait | Closing | Closed) => {
                self.serves = 0;
                Closing
            }
            (Closing, _) => Closed,
            _ => return true,
        };
        self.write(next, store);
        next == goal
    }
}

impl End for Back {
    fn steps(&self, store: &Store) -> Vec<(Back, Store)> {
        let mut back = self.clone();
        let mut after = store.clone();
        match self.goal {
            None if self.state == Initialising => back.write(InitWait, &mut after),
            None if store.back_event => {
                after.back_event = false;
                back.goal = Some(store.front).filter(|front| !back.follow(*front, &mut after));
            }
            None => return Vec::new(),
            Some(front) => back.goal = Some(front).filter(|front| !back.follow(*front, &mut after)),
        }
        vec![(back, after)]
    }

    fn disturb(&self, store: &Store) -> Vec<(Back, Store)> {
        if store.left.back_restarts == 0 {
            return Vec::new();
        }
        // The driver is unbound, which is Closed, and bound again.
        let mut after = store.clone();
        after.left.back_restarts -= 1;
        after.set_back(Closed);
        vec![(Back::new(self.server), after)]
    }

    fn ring(&self) -> u8 {
        self.serves
    }
}
