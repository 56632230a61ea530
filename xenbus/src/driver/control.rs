// Not a core: does I/O or calls a hypervisor.

//! The control loop: takes events, reads the devices they concern, writes the devices' updates.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use event_loop::{Connector, EventSet, LongestTurn, Turn};
use ring_abi::DomId;
use ring_abi::xenbus::key::FRONTEND_ID;

use super::domain_budgets::DomainBudgets;
use super::entry::{Entry, Service};
use super::publish::{publish, read, writes};
use super::target::{BACKEND_TOKEN, Id, Target, frontend_token, target};
use super::unserved::{BUSY, PAUSES, closing, is_to_wait, unserved, without_own};
use super::waker::Waker;
use super::{BackDriver, DeviceState, Failure, Registry, Update};
use crate::{Device, DeviceEnd, XenbusState, instance};
use xenstore::{Client, Error, Nodes};

/// Most events taken before devices are refreshed.
const EVENTS: usize = 1024;

/// The processor time after which no further device is refreshed in a turn; one refresh exceeds it.
const TURN: Duration = Duration::from_millis(4);

/// The tokens of the descriptors that the loop waits for.
const STOP: u64 = 0;
pub(super) const STORE: u64 = 1;
const WOKEN: u64 = 2;

pub(super) struct Control<'d> {
    pub(super) client: Client,
    /// Makes a connection again that was lost, if any is to be.
    pub(super) store: Option<&'d dyn Connector>,
    domid: DomId,
    pub(super) root: String,
    driver: &'d mut dyn BackDriver,
    registry: Registry,
    pub(super) devices: BTreeMap<Id, Entry>,
    dirty: BTreeSet<Id>,
    /// When the devices that wait are probed, or read, again.
    probes: BTreeMap<Id, Instant>,
    woken: event_loop::Waker<Id>,
    pub(super) event_set: EventSet,
    budgets: DomainBudgets,
    /// The device that was refreshed last: those behind it are next.
    last: Option<Id>,
    longest_turn: LongestTurn,
}

impl<'d> Control<'d> {
    pub(super) fn new(
        mut client: Client,
        store: Option<&'d dyn Connector>,
        domid: DomId,
        driver: &'d mut dyn BackDriver,
        registry: Registry,
    ) -> Result<Self, Error> {
        let root = format!("/local/domain/{domid}/backend/{}", driver.kind());
        client.watch(&root, BACKEND_TOKEN)?;
        let woken = event_loop::Waker::new()?;
        let longest_turn = registry.longest_turn();
        let event_set = EventSet::new()?;
        event_set.add(client.fd(), STORE)?;
        event_set.add(&woken, WOKEN)?;
        Ok(Control {
            client,
            store,
            domid,
            root,
            driver,
            registry,
            devices: BTreeMap::new(),
            dirty: BTreeSet::new(),
            probes: BTreeMap::new(),
            woken,
            event_set,
            budgets: DomainBudgets::new(Instant::now()),
            last: None,
            longest_turn,
        })
    }

    pub(super) fn run(mut self, stop: BorrowedFd<'_>) -> Result<(), Error> {
        let outcome = self.serve(stop);
        for entry in self.devices.values_mut() {
            if let Service::Running(device) = &mut entry.service {
                let _span = entry.span.enter();
                device.stop();
            }
        }
        let deadline = Instant::now() + BUSY;
        for (id, mut entry) in self.devices {
            let _span = entry.span.enter();
            // What the process that is about to end has not closed, it leaves as a killed one does.
            while !entry.service.release() && Instant::now() < deadline {
                std::thread::park_timeout(PAUSES[0]);
            }
            self.registry.remove(id);
        }
        outcome
    }

    fn serve(&mut self, stop: BorrowedFd<'_>) -> Result<(), Error> {
        self.event_set.add(stop, STOP)?;
        let longest_turn = self.longest_turn.clone();
        loop {
            let until = match self.turn(&longest_turn) {
                Err(error) if error.is_disconnected() && self.store.is_some() => {
                    if !self.reconnect(&error)? {
                        return Ok(());
                    }
                    Some(Instant::now())
                }
                until => until?,
            };
            if self.wait(until)? {
                return Ok(());
            }
        }
    }

    /// Takes events and refreshes devices; returns until when to wait.
    fn turn(&mut self, longest_turn: &LongestTurn) -> Result<Option<Instant>, Error> {
        let turn = longest_turn.begin();
        let drained = self.take_events()?;
        self.dirty.extend(self.woken.take());
        let now = Instant::now();
        self.dirty.extend(self.probes.iter().filter(|(_, when)| **when <= now).map(|(id, _)| *id));
        let round = self.refresh_dirty(now, &turn)?;
        let next = round.next.into_iter().chain(self.probes.values().copied()).min();
        // A refresh reads from the store, and events may have come in with the replies.
        Ok(if drained && !round.refreshed { next } else { Some(Instant::now()) })
    }

    /// Marks the devices that events concern; `true` when all events were taken.
    fn take_events(&mut self) -> Result<bool, Error> {
        for _ in 0..EVENTS {
            match self.client.poll_event() {
                Ok(None) => return Ok(true),
                Ok(Some(event)) => match target(&self.root, &event.path, &event.token) {
                    Target::Device(id) => drop(self.dirty.insert(id)),
                    Target::Domain(domid) => self.scan_domain(domid)?,
                    Target::All => self.scan()?,
                    Target::Nothing => {}
                },
                Err(Error::EventsLost(tokens)) => {
                    for token in tokens {
                        match target(&self.root, &self.root, &token) {
                            Target::Device(id) => drop(self.dirty.insert(id)),
                            _ => self.scan()?,
                        }
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    /// Marks every device that is known or in the store.
    fn scan(&mut self) -> Result<(), Error> {
        self.dirty.extend(self.devices.keys());
        for domid in self.children(&self.root.clone())? {
            self.scan_domain(domid)?;
        }
        Ok(())
    }

    fn scan_domain(&mut self, domid: DomId) -> Result<(), Error> {
        self.dirty.extend(self.devices.range((domid, 0)..=(domid, u32::MAX)).map(|(id, _)| *id));
        let path = format!("{}/{domid}", self.root);
        let found = self.children(&path)?;
        self.dirty.extend(found.into_iter().map(|device| (domid, device)));
        Ok(())
    }

    fn children<T: std::str::FromStr>(&mut self, path: &str) -> Result<Vec<T>, Error> {
        match self.client.directory(path) {
            Ok(names) => Ok(names.iter().filter_map(|n| n.parse().ok()).collect()),
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Refreshes every marked device whose rate allows it; the others stay marked.
    fn refresh_dirty(&mut self, now: Instant, turn: &Turn<'_>) -> Result<Round, Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut round = Round { refreshed: false, next: None };
        let dirty = std::mem::take(&mut self.dirty);
        let behind = self.last.map_or(Unbounded, Excluded);
        let before = self.last.into_iter().flat_map(|last| dirty.range(..=last));
        for id in dirty.range((behind, Unbounded)).chain(before).copied() {
            if turn.elapsed() >= TURN {
                self.dirty.insert(id);
                round.refreshed = true;
                continue;
            }
            if let Some(when) = self.take_refresh(id, now) {
                self.dirty.insert(id);
                round.next = Some(round.next.map_or(when, |next| next.min(when)));
                continue;
            }
            round.refreshed = true;
            self.last = Some(id);
            match self.refresh(id, now) {
                // An error reply of the store concerns this device alone.
                Err(
                    error @ (Error::Store { .. }
                    | Error::Value { .. }
                    | Error::Request { .. }
                    | Error::Conflict { .. }),
                ) => {
                    let kind = self.driver.kind();
                    tracing::warn!(domid = id.0.0, devid = id.1, kind, %error, "failed to refresh a device");
                }
                done => done?,
            }
        }
        Ok(round)
    }

    /// Takes what a device's next refresh costs, or returns when that will be there.
    fn take_refresh(&mut self, id: Id, now: Instant) -> Option<Instant> {
        let time = self.budgets.time(now);
        let of_device = || self.devices.get_mut(&id).and_then(|entry| entry.take_refresh(time));
        if let Some(wait) = self.budgets.wait(id.0, time).or_else(of_device) {
            return Some(now + wait);
        }
        self.budgets.take(id.0, time);
        None
    }

    fn refresh(&mut self, id: Id, now: Instant) -> Result<(), Error> {
        let known = match self.devices.remove(&id) {
            Some(entry) => Some(entry),
            None => self.find(id, now)?,
        };
        let Some(mut entry) = known else { return Ok(()) };
        let _span = entry.span.clone().entered();
        self.probes.remove(&id);
        let first = !matches!(entry.service, Service::Running(_));
        let seen = match read(&mut self.client, &entry.end, first, self.driver.frontend_keys()) {
            Ok(None) => return self.forget(id, entry, "removed"),
            Ok(Some(seen)) if entry.instance.is_some() && entry.instance != instance::found(&seen) => {
                // It is found again.
                self.dirty.insert(id);
                return self.forget(id, entry, "replaced by another device");
            }
            Ok(Some(seen)) => seen,
            Err(e) => {
                self.devices.insert(id, entry);
                return Err(e);
            }
        };
        entry.instance = instance::found(&seen);
        entry.has_read(&seen.other);
        let mut update = self.update(id, &mut entry, &seen, now);
        if entry.service.is_foreign() {
            self.devices.insert(id, entry);
            return Ok(());
        }
        let is_closed = update.state.unwrap_or(seen.own_state) == XenbusState::Closed;
        if !seen.online && is_closed {
            if !entry.service.release() {
                update.state = None;
                update.again = Some(PAUSES[0]);
            }
            self.registry.remove(id);
        }
        if let Some(pause) = update.again {
            self.probes.insert(id, now + pause);
        }
        let published = self.publish(id, &mut entry, &seen, &update);
        let is_new = first && matches!(entry.service, Service::Running(_));
        if !matches!(published, Ok(true)) && matches!(entry.service, Service::Failed(_)) {
            // Its failure is not reported yet.
            entry.service = Service::New;
        }
        self.devices.insert(id, entry);
        if !published? {
            self.dirty.insert(id);
        } else if update.error.is_none() && (is_new || update.state == Some(XenbusState::Connected)) {
            self.clear_error(id);
        }
        Ok(())
    }

    /// Writes and reports a device's update; `false` where the store has changed and the device is to be read again.
    fn publish(
        &mut self,
        id: Id,
        entry: &mut Entry,
        seen: &DeviceState,
        update: &Update,
    ) -> Result<bool, Error> {
        if writes(seen, update) {
            let instance = instance::found(seen).map_or_else(instance::random, Ok)?;
            if !publish(&mut self.client, &entry.end, seen, update, &instance, self.driver.frontend_keys())? {
                return Ok(false);
            }
            entry.instance = Some(instance);
        } else if let Some(Failure { errno, what, .. }) = &update.error {
            entry.end.error(&mut self.client, *errno, what);
        }
        if let Some(failure) = &update.error {
            self.registry.set_error(id, Some(&failure.what));
        }
        Ok(true)
    }

    fn clear_error(&mut self, id: Id) {
        self.registry.set_error(id, None);
        if let Some(entry) = self.devices.get(&id) {
            entry.end.clear_error(&mut self.client);
        }
    }

    /// Drops a device whose node is not its own any more.
    fn forget(&mut self, id: Id, entry: Entry, why: &str) -> Result<(), Error> {
        tracing::info!(path = entry.end.path(), "{why}");
        if !entry.service.is_foreign() {
            entry.end.clear_error(&mut self.client);
        }
        drop(entry.service);
        self.registry.remove(id);
        if self.devices.range((id.0, 0)..=(id.0, u32::MAX)).next().is_none() {
            self.budgets.forget_rested(id.0, self.budgets.time(Instant::now()));
        }
        entry.end.unwatch_other(&mut self.client, &frontend_token(id))
    }

    /// Makes the entry of a new device once its node names the frontend.
    fn find(&mut self, id: Id, now: Instant) -> Result<Option<Entry>, Error> {
        let path = format!("{}/{}/{}", self.root, id.0, id.1);
        let end = match DeviceEnd::find_back(&mut self.client, &path) {
            Ok(end) => end,
            // Still being written, or removed again: an event follows.
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e),
        };
        if end.other_id() != id.0 {
            let found = end.other_id().to_string();
            let key = format!("{path}/{FRONTEND_ID}");
            return Err(Error::value(key, &found, "the domain in the path"));
        }
        end.watch_other(&mut self.client, &frontend_token(id))?;
        Ok(Some(Entry::new(end, self.driver.kind(), id, now, self.budgets.time(now))))
    }

    fn update(&mut self, id: Id, entry: &mut Entry, seen: &DeviceState, now: Instant) -> Update {
        if matches!(entry.service, Service::Releasing(_)) && !entry.service.release() {
            return Update { again: Some(PAUSES[0]), ..Update::default() };
        }
        let untried = match &entry.service {
            Service::New => true,
            Service::Waiting(_, keys, at) => now >= *at || *keys != without_own(&seen.own),
            Service::Failed(keys) => seen.online && *keys != without_own(&seen.own),
            Service::Closed => seen.online,
            Service::Running(_) | Service::Releasing(_) => false,
        };
        if untried {
            if matches!(entry.service, Service::Closed) {
                // As a new one, which it may be.
                entry.since = now;
                entry.was_served = false;
            }
            entry.was_served |= !matches!(seen.own_state, XenbusState::Unknown | XenbusState::Initialising);
            let kind = self.driver.kind().to_owned();
            let device = Device { kind, front: id.0, back: self.domid, id: id.1 };
            match self.driver.probe(&device, seen, Waker::new(id, self.woken.clone())) {
                Ok(device) => {
                    self.registry.insert(id, device.stats());
                    entry.service = Service::Running(device);
                }
                Err(failure) => return self.not_probed(id, entry, seen, failure, now),
            }
        }
        match &mut entry.service {
            Service::Running(device) => device.changed(seen),
            Service::Waiting(_, _, at) => {
                self.probes.insert(id, *at);
                Update::default()
            }
            Service::Closed => Update { state: Some(XenbusState::Closed), ..Update::default() },
            _ => unserved(seen),
        }
    }

    /// Has a device that could not be probed wait, or closes it.
    fn not_probed(
        &mut self,
        id: Id,
        entry: &mut Entry,
        seen: &DeviceState,
        failure: Failure,
        now: Instant,
    ) -> Update {
        let waited = now.saturating_duration_since(entry.since);
        let is_to_wait = match seen.online {
            true => is_to_wait(&failure, waited, seen.own_state),
            // Another process may be closing it.
            false => failure.may_pass && entry.was_served,
        };
        if !is_to_wait {
            entry.service = Service::Failed(without_own(&seen.own));
            return match seen.online {
                true => Update { state: closing(seen), error: Some(failure), ..Update::default() },
                false => unserved(seen),
            };
        }
        let at = now + PAUSES[usize::from(waited >= BUSY)];
        self.probes.insert(id, at);
        let waiting = Service::Waiting(failure.clone(), without_own(&seen.own), at);
        if matches!(std::mem::replace(&mut entry.service, waiting), Service::Waiting(known, ..) if known == failure)
        {
            return Update::default();
        }
        if failure.may_pass {
            tracing::info!("waits: {}", failure.what);
            self.registry.set_error(id, Some(&format!("waits: {}", failure.what)));
            return Update::default();
        }
        let what = format!("{}; waiting, as a guest may be using it", failure.what);
        Update { error: Some(Failure { what, ..failure }), ..Update::default() }
    }

    /// Sleeps until an event or `until`; `true` when the stop descriptor is readable.
    pub(super) fn wait(&self, until: Option<Instant>) -> Result<bool, Error> {
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        Ok(self.event_set.wait(timeout)?.contains(STOP))
    }
}

/// The outcome of one pass over the marked devices.
struct Round {
    /// At least one device was refreshed.
    refreshed: bool,
    /// When the next device that waits for a token may be refreshed.
    next: Option<Instant>,
}
