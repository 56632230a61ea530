//! The loop: events in, devices looked at, answers out.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::credit::Credit;
use super::publish::{publish, view};
use super::waker::{Waker, Wakers};
use super::watched::{BACK, Id, Target, front_token, target};
use super::{Answer, BackDevice, BackDriver, Failure, View};
use crate::xenbus::{Device, End};
use crate::{Client, DomId, Error, Keys, Nodes, XenbusState};

/// Events taken before devices get their turn.
const EVENTS: usize = 1024;

/// How long what a new device needs may be in use: by an earlier device's thread, or by an earlier backend's process,
/// neither of which anybody waits for when it ends.
const BUSY: Duration = Duration::from_secs(5);

/// One device, as far as it is known.
struct Entry {
    end: End,
    credit: Credit,
    /// When it was found.
    since: Instant,
    service: Service,
}

enum Service {
    /// Not probed yet.
    New,
    /// Probed, and in use: it is probed again.
    Waits,
    /// Served.
    Runs(Box<dyn BackDevice>),
    /// Could not be probed with these keys.
    Failed(Keys),
}

pub(super) struct Control<'d> {
    client: Client,
    domid: DomId,
    root: String,
    driver: &'d mut dyn BackDriver,
    devices: BTreeMap<Id, Entry>,
    dirty: BTreeSet<Id>,
    wakers: Arc<Wakers>,
}

impl<'d> Control<'d> {
    pub(super) fn new(
        mut client: Client,
        domid: DomId,
        driver: &'d mut dyn BackDriver,
    ) -> Result<Self, Error> {
        let root = format!("/local/domain/{domid}/backend/{}", driver.kind());
        client.watch(&root, BACK)?;
        let wakers = Wakers::new().map_err(|e| Error::Io(e.into()))?;
        let (devices, dirty) = (BTreeMap::new(), BTreeSet::new());
        Ok(Control { client, domid, root, driver, devices, dirty, wakers })
    }

    pub(super) fn run(mut self, stop: BorrowedFd<'_>) -> Result<(), Error> {
        let outcome = self.serve(stop);
        for entry in self.devices.values_mut() {
            if let Service::Runs(device) = &mut entry.service {
                device.stop();
            }
        }
        outcome
    }

    fn serve(&mut self, stop: BorrowedFd<'_>) -> Result<(), Error> {
        loop {
            let drained = self.take_events()?;
            self.dirty.extend(self.wakers.take());
            let turn = self.look_at_dirty(Instant::now())?;
            // Looking reads from the store, and events may have come in with the replies.
            let until = if drained && !turn.worked { turn.next } else { Some(Instant::now()) };
            if self.wait(stop, until)? {
                return Ok(());
            }
        }
    }

    /// Marks what the events speak of; `true` when all of them were taken.
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
                // Not knowing what changed, look at everything.
                Err(Error::EventsLost(_)) => self.scan()?,
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    /// Marks every device known or found.
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

    /// Looks at every marked device that has credit; the others stay marked.
    fn look_at_dirty(&mut self, now: Instant) -> Result<Turn, Error> {
        let mut turn = Turn { worked: false, next: None };
        for id in std::mem::take(&mut self.dirty) {
            if let Some(Err(when)) = self.devices.get_mut(&id).map(|entry| entry.credit.take(now)) {
                self.dirty.insert(id);
                turn.next = Some(turn.next.map_or(when, |next| next.min(when)));
                continue;
            }
            turn.worked = true;
            match self.look_at(id, now) {
                // What the store refuses concerns this device alone.
                Err(e @ (Error::Store { .. } | Error::Value { .. } | Error::Conflict { .. })) => {
                    tracing::warn!(domid = id.0, device = id.1, kind = self.driver.kind(), "{e}");
                }
                done => done?,
            }
        }
        Ok(turn)
    }

    fn look_at(&mut self, id: Id, now: Instant) -> Result<(), Error> {
        let known = match self.devices.remove(&id) {
            Some(entry) => Some(entry),
            None => self.find(id, now)?,
        };
        let Some(mut entry) = known else { return Ok(()) };
        let first = !matches!(entry.service, Service::Runs(_));
        let seen = match view(&mut self.client, &entry.end, first) {
            Ok(Some(seen)) => seen,
            Ok(None) => {
                tracing::info!(path = entry.end.path(), "removed");
                return entry.end.unwatch_other(&mut self.client, &front_token(id));
            }
            Err(e) => {
                self.devices.insert(id, entry);
                return Err(e);
            }
        };
        let answer = self.ask(id, &mut entry, &seen, now);
        if let Some(Failure { errno, what }) = &answer.error {
            entry.end.error(&mut self.client, *errno, what);
        }
        let written = publish(&mut self.client, &entry.end, &seen, &answer);
        self.devices.insert(id, entry);
        if !written? {
            self.dirty.insert(id);
        }
        Ok(())
    }

    /// A device seen for the first time, once its node says who has the frontend.
    fn find(&mut self, id: Id, now: Instant) -> Result<Option<Entry>, Error> {
        let path = format!("{}/{}/{}", self.root, id.0, id.1);
        let end = match End::find_back(&mut self.client, &path) {
            Ok(end) => end,
            // Still being written, or gone again: an event follows.
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e),
        };
        if end.other_id() != id.0 {
            let found = end.other_id().to_string();
            return Err(Error::value(format!("{path}/frontend-id"), &found, "the domain in the path"));
        }
        end.watch_other(&mut self.client, &front_token(id))?;
        Ok(Some(Entry { end, credit: Credit::new(now), since: now, service: Service::New }))
    }

    fn ask(&mut self, id: Id, entry: &mut Entry, seen: &View, now: Instant) -> Answer {
        let untried = match &entry.service {
            Service::New | Service::Waits => true,
            Service::Failed(keys) => *keys != without_state(&seen.own),
            Service::Runs(_) => false,
        };
        if untried {
            let kind = self.driver.kind().to_owned();
            let device = Device { kind, front: id.0, back: self.domid, id: id.1 };
            match self.driver.probe(&device, seen, Waker::new(id, self.wakers.clone())) {
                Ok(device) => entry.service = Service::Runs(device),
                Err(failure)
                    if is_to_wait(&failure, now.saturating_duration_since(entry.since), seen.own_state) =>
                {
                    if matches!(entry.service, Service::New) {
                        tracing::info!(device = device.back_path(), "waits: {}", failure.what);
                        entry.service = Service::Waits;
                    }
                    // Its credit sets the pace.
                    self.dirty.insert(id);
                    return Answer::default();
                }
                Err(failure) => {
                    entry.service = Service::Failed(without_state(&seen.own));
                    let state = Some(XenbusState::Closing);
                    return Answer { state, error: Some(failure), ..Answer::default() };
                }
            }
        }
        match &mut entry.service {
            Service::Runs(device) => device.changed(seen),
            // Nothing is served, so nothing has to be waited for.
            _ if !seen.online => Answer { state: Some(XenbusState::Closed), ..Answer::default() },
            _ => Answer::default(),
        }
    }

    /// Sleeps until there is something to do, or until a time; `true` when told to stop.
    fn wait(&mut self, stop: BorrowedFd<'_>, until: Option<Instant>) -> Result<bool, Error> {
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [stop, self.client.fd(), self.wakers.fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
            Err(e) => Err(Error::Io(e.into())),
        }
    }
}

/// Whether a device that could not be had is to be tried again: for a while, or as long as it is Connected. Then
/// another process serves it, and to close it would be to take it from a guest that has all it needs.
fn is_to_wait(failure: &Failure, waited: Duration, own_state: XenbusState) -> bool {
    failure.errno == Errno::EBUSY as i32 && (waited < BUSY || own_state == XenbusState::Connected)
}

/// What one round did.
struct Turn {
    /// A device was looked at.
    worked: bool,
    /// When the next device that waits for credit may be looked at.
    next: Option<Instant>,
}

/// A backend's keys but for its state, which is ours.
fn without_state(keys: &Keys) -> Keys {
    let mut keys = keys.clone();
    keys.remove("state");
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_serves_is_waited_for_and_never_closed() {
        let (busy, gone) = (Failure::new(Errno::EBUSY as i32, ""), Failure::new(Errno::ENODEV as i32, ""));
        assert!(is_to_wait(&busy, BUSY * 1000, XenbusState::Connected));
        assert!(is_to_wait(&busy, Duration::ZERO, XenbusState::Initialising));
        assert!(!is_to_wait(&busy, BUSY, XenbusState::InitWait));
        assert!(!is_to_wait(&gone, Duration::ZERO, XenbusState::Connected));
    }
}
