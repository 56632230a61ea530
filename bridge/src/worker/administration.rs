// Not a core: does I/O or calls a hypervisor.

//! What other threads ask of the worker: ports that come and go, what they may send, and what is shown of them.

use std::time::Instant;

use crate::{
    Capture, CaptureOptions, DropReason, Error, Frame, Port, PortInfo, PortSettings, RateLimits, Setting,
    announce::announcements,
    attached_port::{AttachedPort, Hold},
    capture::MAX_CAPTURES,
    egress_queue::EgressQueue,
    fdb::PortId,
    rate_limit::RateLimit,
};

use super::Worker;

impl Worker {
    pub(super) fn attach(
        &mut self,
        name: String,
        port: Box<dyn Port>,
        settings: PortSettings,
    ) -> Result<(), Error> {
        if self.find(&name).is_some() {
            return Err(Error::NameTaken(name));
        }
        let Some(id) = self.switch.free_port_id() else {
            return Err(Error::TooManyPorts { name, max: self.switch.max_ports() });
        };
        let os = |error| Error::Os { what: format!("bridge {:?}: port {name:?}: epoll", self.name), error };
        self.poller.add(id, port.fd()).map_err(os)?;
        let queue = EgressQueue::new(self.limits, self.seed);
        let mut attached = AttachedPort::new(name, port, queue, Instant::now());
        attached.rate = RateLimit::new(settings.rate, false, self.started.elapsed());
        attached.set_rate_in(settings.rate_in, self.limits, Instant::now());
        attached.settings = settings.clone();
        let name = attached.name.clone();
        self.switch.attach(id, attached.caps, &settings, self.started.elapsed());
        if let Some(address) = settings.address.filter(|address| !self.switch.has_address(id, *address)) {
            tracing::warn!(bridge = self.name, port = attached.name, %address, "another port has the address");
        }
        let index = usize::from(id.0);
        self.ports.resize_with(self.ports.len().max(index + 1), || None);
        self.ports[index] = Some(attached);
        self.select_in_mirrors();
        if !self.awaited.is_empty() {
            self.give_awaited(id, &name);
        }
        let announced =
            settings.address.filter(|address| self.announces && self.switch.has_address(id, *address));
        if let Some(address) = announced {
            self.announce(id, &announcements(address, &settings.allowed));
        }
        Ok(())
    }

    /// Sends frames on behalf of a port to those that are of no guest.
    fn announce(&mut self, id: PortId, frames: &[Frame]) {
        self.now = Instant::now();
        self.batch.limit(usize::MAX);
        for frames in frames.chunks(self.batch.room().max(1)) {
            for frame in frames {
                if let Some(slot) = self.batch.slot() {
                    slot.copy_from(frame);
                }
            }
            self.switch.announce(id, self.batch.frames());
            self.send(id, None, false);
            self.batch.clear();
        }
    }

    /// Seconds since the start: the worker may have slept since it last looked at the clock.
    pub(super) fn since_start_s(&self) -> u32 {
        self.started.elapsed().as_secs() as u32
    }

    /// Changes one of a port's settings.
    pub(super) fn set(&mut self, name: &str, setting: Setting) -> Result<(), Error> {
        let id = self.find(name).ok_or_else(|| Error::NoSuchPort(name.to_owned()))?;
        if let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) {
            attached.settings.change(setting.clone());
        }
        match setting {
            Setting::Lock(lock, allowed) => self.switch.set_lock(id, lock, allowed),
            Setting::Vlans(vlans) => self.switch.set_vlans(id, vlans),
            Setting::Flags(flags) => self.switch.set_flags(id, flags),
            Setting::Rate(rate) => self.set_rate(id, rate),
            Setting::RateIn(rate) => self.set_rate_in(id, rate),
            Setting::Storm(limits) => self.switch.set_storm(id, limits, self.started.elapsed()),
        }
        Ok(())
    }

    fn set_rate(&mut self, id: PortId, rate: RateLimits) {
        if let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) {
            attached.rate = RateLimit::new(rate, attached.rate.is_some(), self.started.elapsed());
            // A port that the earlier rate holds is looked at again.
            if let Some(hold) = attached.hold.as_mut().filter(|hold| hold.to.is_none()) {
                hold.until = self.now;
            }
        }
    }

    fn set_rate_in(&mut self, id: PortId, rate: RateLimits) {
        let now = Instant::now();
        if let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) {
            attached.set_rate_in(rate, self.limits, now);
            attached.wake(now);
        }
        // All are asked when they may go on.
        self.due = Some(now);
    }

    pub(super) fn capture(&mut self, name: String, options: CaptureOptions) -> Result<Capture, Error> {
        let id = self.find(&name).ok_or_else(|| Error::NoSuchPort(name.clone()))?;
        let attached = self.ports.get_mut(usize::from(id.0)).and_then(Option::as_mut);
        let added = attached.and_then(|attached| attached.captures.add(options, self.now));
        added.ok_or(Error::TooManyCaptures { name, max: MAX_CAPTURES })
    }

    pub(super) fn detach(&mut self, name: String) -> Result<Box<dyn Port>, Error> {
        let Some(mut attached) = self.find(&name).and_then(|id| self.remove(id)) else {
            return Err(Error::NoSuchPort(name));
        };
        if let Err(error) = attached.port.flush() {
            tracing::warn!(bridge = self.name, port = name, %error, "failed to flush a port before detaching it");
        }
        Ok(attached.port)
    }

    pub(super) fn remove(&mut self, id: PortId) -> Option<AttachedPort> {
        let mut attached = self.ports.get_mut(usize::from(id.0))?.take()?;
        self.poller.remove(attached.port.fd());
        self.switch.detach(id);
        self.end_mirrors_to(&attached.name);
        attached.close();
        if let Some(Hold { to, .. }) = attached.hold {
            self.held -= 1;
            let full = to.and_then(|to| self.ports.get_mut(usize::from(to.0))?.as_mut());
            if let Some(full) = full {
                full.stats.lost(DropReason::NoRoom, full.queue.release(id));
            }
        }
        Some(attached)
    }

    pub(super) fn find(&self, name: &str) -> Option<PortId> {
        let index = self
            .ports
            .iter()
            .position(|attached| attached.as_ref().is_some_and(|attached| attached.name == name))?;
        Some(PortId(index as u16))
    }

    pub(super) fn port_infos(&self) -> Vec<PortInfo> {
        let info = |attached: &AttachedPort| PortInfo {
            name: attached.name.clone(),
            counters: attached.stats.read(),
            settings: attached.settings.clone(),
        };
        self.ports.iter().flatten().map(info).collect()
    }
}
