//! Every interleaving of two ends over a store, and what has to be true of each.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;

use xenbus::XenbusState::{self, Closed, Closing, Initialising};

/// What both ends have in common: the store's nodes, the events that are not taken yet, and the rings that exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) front: XenbusState,
    pub(crate) back: XenbusState,
    pub(crate) online: bool,
    /// The rings that the frontend's keys name; 0 for none.
    pub(crate) ring: u8,
    /// The rings that the frontend has; 0 for none. Not in the store: a backend that maps others fails.
    pub(crate) live: u8,
    /// The rings that the backend serves; 0 for none. Not in the store: the frontend's event channel is closed otherwise.
    pub(crate) served: u8,
    /// An end's watches have fired since it last read. Any number of events are one.
    pub(crate) front_event: bool,
    pub(crate) back_event: bool,
    /// What may still happen to the ends.
    pub(crate) left: Disturbances,
    /// Connecting failed by a disturbance, or a frontend has closed for good.
    pub(crate) may_be_closed: bool,
}

/// How often each may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Disturbances {
    /// The backend's process is killed and another starts.
    pub(crate) back_restarts: u8,
    /// The frontend's process or kernel is killed and another starts.
    pub(crate) front_restarts: u8,
    /// The frontend closes: for good, or to connect again.
    pub(crate) front_closes: u8,
    /// The toolstack detaches the device.
    pub(crate) detaches: u8,
    /// The backend fails to connect.
    pub(crate) failures: u8,
}

impl Store {
    pub(crate) fn set_front(&mut self, state: XenbusState) {
        self.front = state;
        self.events();
    }

    pub(crate) fn set_back(&mut self, state: XenbusState) {
        self.back = state;
        self.events();
    }

    /// New rings, whose number the one before the last had.
    pub(crate) fn new_ring(&mut self) {
        self.live = if self.ring == 1 { 2 } else { 1 };
        self.ring = self.live;
    }

    fn events(&mut self) {
        self.front_event = true;
        self.back_event = true;
    }

    /// As libxl does it.
    fn detach(&mut self) {
        self.online = false;
        if self.back != Closed {
            self.back = Closing;
        }
        self.events();
    }
}

/// One end, as a value.
pub(crate) trait End: Clone + Debug + PartialEq + Eq + Hash {
    /// All that it may do next by itself; nothing where it waits.
    fn steps(&self, store: &Store) -> Vec<(Self, Store)>;

    /// All that may happen to it.
    fn disturb(&self, store: &Store) -> Vec<(Self, Store)>;

    /// The rings that it serves, or uses.
    fn ring(&self) -> u8;
}

type World<F, B> = (F, B, Store);

/// Explores all that may happen from the start. In the end, whatever has happened, both ends are connected by the same rings,
/// or closed if the device was detached or may be closed; and no state is ever written in a circle.
pub(crate) fn explore<F: End, B: End>(front: F, back: B, left: Disturbances) -> usize {
    let store = Store {
        front: Initialising,
        back: Initialising,
        online: true,
        ring: 0,
        live: 0,
        served: 0,
        front_event: true,
        back_event: true,
        left,
        may_be_closed: false,
    };
    let mut known = HashMap::from([((front.clone(), back.clone(), store.clone()), 0)]);
    let mut worlds = vec![(front, back, store)];
    let mut parents = vec![0];
    let mut progress: Vec<Vec<usize>> = Vec::new();
    while progress.len() < worlds.len() {
        let at = progress.len();
        let world = worlds[at].clone();
        let mut number = |next: World<F, B>| {
            *known.entry(next.clone()).or_insert_with(|| {
                worlds.push(next);
                parents.push(at);
                worlds.len() - 1
            })
        };
        let next = steps(&world).into_iter().map(&mut number).collect::<Vec<_>>();
        disturbed(&world).into_iter().map(&mut number).for_each(drop);
        if next.is_empty() {
            assert!(is_settled(&world), "stuck:\n{}", path(&worlds, &parents, at));
        }
        progress.push(next);
    }
    if let Some(at) = in_a_circle(&progress) {
        let circle: Vec<String> = at.iter().map(|at| line(&worlds[*at])).collect();
        panic!("never ends:\n{}\nafter\n{}", circle.join("\n"), path(&worlds, &parents, at[0]));
    }
    worlds.len()
}

fn steps<F: End, B: End>((front, back, store): &World<F, B>) -> Vec<World<F, B>> {
    let fronts = front.steps(store).into_iter().map(|(front, store)| (front, back.clone(), store));
    let backs = back.steps(store).into_iter().map(|(back, store)| (front.clone(), back, store));
    fronts.chain(backs).map(with_served).collect()
}

fn with_served<F: End, B: End>((front, back, mut store): World<F, B>) -> World<F, B> {
    store.served = back.ring();
    (front, back, store)
}

fn disturbed<F: End, B: End>((front, back, store): &World<F, B>) -> Vec<World<F, B>> {
    let fronts = front.disturb(store).into_iter().map(|(front, store)| (front, back.clone(), store));
    let backs = back.disturb(store).into_iter().map(|(back, store)| (front.clone(), back, store));
    let mut worlds: Vec<_> = fronts.chain(backs).map(with_served).collect();
    if store.left.detaches > 0 {
        let mut detached = store.clone();
        detached.left.detaches -= 1;
        detached.detach();
        worlds.push((front.clone(), back.clone(), detached));
    }
    worlds
}

/// Whether both ends may wait for ever.
fn is_settled<F: End, B: End>((front, back, store): &World<F, B>) -> bool {
    use XenbusState::{Connected, InitWait};
    let connected = (store.front, store.back) == (Connected, Connected)
        && back.ring() == store.live
        && front.ring() == store.live
        && store.live != 0;
    let closed = store.back == Closed && back.ring() == 0;
    if !store.online {
        return closed && matches!(store.front, Closed | Initialising);
    }
    // A frontend that closes before it has offered rings leaves a backend that waits.
    let waits = store.back == InitWait && back.ring() == 0;
    connected || store.may_be_closed && store.front == Closed && (closed || waits)
}

/// The steps that led to a state.
fn path<F: End, B: End>(worlds: &[World<F, B>], parents: &[usize], mut at: usize) -> String {
    let mut lines = Vec::new();
    loop {
        lines.push(line(&worlds[at]));
        if at == 0 {
            break;
        }
        at = parents[at];
    }
    lines.reverse();
    lines.join("\n")
}

fn line<F: End, B: End>((front, back, store): &World<F, B>) -> String {
    let Store { front: front_state, back: back_state, online, ring, live, .. } = store;
    format!(
        "front {front_state}, back {back_state}, online {online}, ring {ring}, live {live}; {front:?}; {back:?}; {}{}",
        if store.front_event { "front event " } else { "" },
        if store.back_event { "back event" } else { "" }
    )
}

/// A state that can be reached from itself, and those in between, if there is one: what remains when states without
/// predecessors are removed again and again, and then those without successors.
fn in_a_circle(next: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut incoming = vec![0usize; next.len()];
    next.iter().flatten().for_each(|to| incoming[*to] += 1);
    let mut free: Vec<usize> = (0..next.len()).filter(|at| incoming[*at] == 0).collect();
    while let Some(at) = free.pop() {
        for to in &next[at] {
            incoming[*to] -= 1;
            if incoming[*to] == 0 {
                free.push(*to);
            }
        }
    }
    let start = incoming.iter().position(|count| *count > 0)?;
    // Every state that remains has a predecessor that remains: going back must come to a state twice.
    let mut before = vec![None; next.len()];
    for (at, to) in next.iter().enumerate().flat_map(|(at, to)| to.iter().map(move |to| (at, *to))) {
        if incoming[at] > 0 {
            before[to] = Some(at);
        }
    }
    let mut seen = vec![start];
    loop {
        let at = before[*seen.last()?]?;
        if let Some(first) = seen.iter().position(|known| *known == at) {
            let mut circle = seen.split_off(first);
            circle.reverse();
            return Some(circle);
        }
        seen.push(at);
    }
}
