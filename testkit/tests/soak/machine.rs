//! The machine in threads, and a toolstack's operations on it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::Duration;

use ::toolstack::machine::attached;
use ::toolstack::machine::device::NewDevice;
use ::toolstack::machine::domain::{self, Removal};
use ring_abi::netif::Mac;
use testkit::block::disk;
use testkit::net::vif;
use testkit::soak::nodes::{check_absent, check_no_guest, count_values, disk_device, vif_device};
use testkit::soak::{
    BadDisk, ContentError, Executor, Figure, GUESTS, Guest, IMAGES, Images, Operation, Slot, State, Step,
    VIFS, Victim, process_figures,
};
use testkit::{BOUND, Machine};
use xenstore::Client;

use super::dom0::Dom0;
use super::frontends::{DiskMedium, GuestDomain, exchange};
use super::toolstack::{Outcome, are_connected, attach, close, domid, remove, wait};

/// How long the operations of a step usually take.
const USUAL: Duration = Duration::from_millis(4);
/// The time between writes to a disk that the step does not concern.
const PACE: Duration = Duration::from_millis(1);
/// How long an image may be in use after its disk was removed by force, or its guest or dom0 was killed.
const RELEASE: Duration = Duration::from_secs(5);

/// The machine.
pub(crate) struct Threads {
    dom0: Mutex<Option<Dom0>>,
    guests: [RwLock<Option<GuestDomain>>; GUESTS],
    machine: Machine,
    images: Images,
    _directory: tempfile::TempDir,
    /// Frames sent.
    tokens: u64,
    /// Both backends of this dom0 have served a device.
    has_served: bool,
}

impl Threads {
    /// A machine without guests. Its log is shown only if RUST_LOG is set, as it is long.
    pub(crate) fn new() -> Threads {
        let machine = match std::env::var_os("RUST_LOG") {
            Some(_) => Machine::new(),
            None => Machine::without_log(),
        };
        domain::add_dom0(&mut machine.client()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let images = Images::new(directory.path()).unwrap();
        let dom0 = Mutex::new(Some(Dom0::start(&machine)));
        Threads {
            dom0,
            guests: Default::default(),
            machine,
            images,
            _directory: directory,
            tokens: 0,
            has_served: false,
        }
    }

    fn carry_out(&self, operation: &Operation, step: &Step, before: &State) -> Outcome {
        use Operation::*;
        let client = &mut self.machine.client();
        match operation {
            Create(guest, devices) => self.create(client, *guest, devices),
            CreateBad(guest, bad) => self.create_bad(client, *guest, *bad),
            Destroy(guest) => {
                let ended = self.guests[*guest].write().unwrap().take();
                self.end(client, *guest, ended)
            }
            AttachDisk(slot, image) => self.attach_disk(client, *slot, &self.images.path(*image)),
            AttachBadDisk(slot, bad) => self.attach_bad(client, *slot, *bad),
            AttachTakenDisk(slot) => self.attach_taken(client, self.new_disk(*slot, Path::new("/none"))),
            AttachTakenVif(slot) => self.attach_taken(client, self.new_vif(*slot)),
            DetachDisk(slot, force) => {
                self.detach_disk(client, *slot, *force)?;
                let is_interrupted = step.replaces_dom0() || step.ends(Victim::Guest(slot.guest));
                match before.image(*slot) {
                    Some(image) if !is_interrupted && !force => self.images.check_unlocked(image),
                    _ => Ok(()),
                }
            }
            AttachVif(slot) => self.attach_vif(client, *slot),
            DetachVif(slot, force) => self.detach_vif(client, *slot, *force),
        }
    }

    fn new_disk(&self, slot: Slot, image: &Path) -> NewDevice {
        let target = image.to_str().unwrap();
        ::toolstack::machine::vbd::nodes(
            domid(slot.guest),
            &disk(disk_device(domid(slot.guest), slot.number).id, target),
        )
    }

    fn new_vif(&self, slot: Slot) -> NewDevice {
        let mac = Mac::xen([0, slot.guest as u8, slot.number as u8]);
        ::toolstack::machine::vif::nodes(domid(slot.guest), &vif(), slot.number as u32, mac)
    }

    /// Writes a guest's nodes, and starts it without devices.
    fn start(&self, client: &mut Client, guest: usize) {
        let name = format!("guest{guest}");
        let started = GuestDomain::start(&self.machine, domid(guest));
        domain::add(client, domid(guest), &name, &name).unwrap();
        *self.guests[guest].write().unwrap() = Some(started);
    }

    fn create(&self, client: &mut Client, guest: usize, devices: &Guest) -> Outcome {
        self.start(client, guest);
        let mut disks =
            devices.disks.iter().enumerate().filter_map(|(number, image)| Some((number, (*image)?)));
        let mut attached = disks.try_for_each(|(number, image)| {
            self.attach_disk(client, Slot { guest, number }, &self.images.path(image))
        });
        for number in (0..VIFS).filter(|number| devices.vifs[*number]) {
            attached = attached.and_then(|()| self.attach_vif(client, Slot { guest, number }));
        }
        if attached.is_err() {
            let ended = self.guests[guest].write().unwrap().take();
            self.end(client, guest, ended)?;
        }
        attached
    }

    fn create_bad(&self, client: &mut Client, guest: usize, bad: BadDisk) -> Outcome {
        self.start(client, guest);
        let attached = self.attach_bad(client, Slot { guest, number: 0 }, bad);
        let ended = self.guests[guest].write().unwrap().take();
        self.end(client, guest, ended).and(attached)
    }

    /// Destroys a guest, as `xpv destroy` does.
    fn end(&self, client: &mut Client, guest: usize, ended: Option<GuestDomain>) -> Outcome {
        let ended = ended.ok_or("the guest does not exist")?;
        ended.kill();
        drop(ended);
        self.forget(guest)?;
        domain::remove(client, domid(guest), true).map(drop).map_err(|error| error.to_string())
    }

    /// Removes the domain of a guest that has ended, once the broker has noticed that.
    fn forget(&self, guest: usize) -> Outcome {
        let domid = domid(guest);
        let control = self.machine.sandbox.control();
        wait("the broker to notice a guest's end", BOUND, || {
            control.get(domid).is_ok_and(|info| info.pid.is_none())
        })?;
        control.destroy(domid).map_err(|error| error.to_string())
    }

    /// Removes a guest that was killed, as `xpv hypervisor` does.
    fn reap(&self, guest: usize, removal: Removal) -> Outcome {
        drop(self.guests[guest].write().unwrap().take());
        let client = &mut self.machine.client();
        wait("the backends of a killed guest", BOUND, || removal.is_due(client).unwrap())?;
        removal.finish(client).map_err(|error| error.to_string())?;
        self.forget(guest)
    }

    fn attach_disk(&self, client: &mut Client, slot: Slot, image: &Path) -> Outcome {
        let guest = self.guests[slot.guest].read().unwrap();
        let guest = guest.as_ref().ok_or("the guest does not exist")?;
        let mut place = guest.disks[slot.number].lock().unwrap();
        let new = self.new_disk(slot, image);
        *place = Some(attach(client, guest, &new, |stop| guest.open_disk(&new.device, stop))?);
        Ok(())
    }

    fn attach_vif(&self, client: &mut Client, slot: Slot) -> Outcome {
        let guest = self.guests[slot.guest].read().unwrap();
        let guest = guest.as_ref().ok_or("the guest does not exist")?;
        let mut place = guest.vifs[slot.number].lock().unwrap();
        let new = self.new_vif(slot);
        *place = Some(attach(client, guest, &new, |stop| guest.open_vif(&new.device, stop))?);
        Ok(())
    }

    fn attach_bad(&self, client: &mut Client, slot: Slot, bad: BadDisk) -> Outcome {
        let path = self.images.bad_path(bad);
        match self.attach_disk(client, slot, &path) {
            Err(_) => Ok(()),
            Ok(()) => Err(format!("{} was attached", path.display())),
        }
    }

    fn attach_taken(&self, client: &mut Client, new: NewDevice) -> Outcome {
        match attached::add(client, &new) {
            Err(_) => Ok(()),
            Ok(_) => Err(format!("{} was attached twice", new.device.front_path())),
        }
    }

    fn detach_disk(&self, client: &mut Client, slot: Slot, force: bool) -> Outcome {
        let guest = self.guests[slot.guest].read().unwrap();
        let guest = guest.as_ref().ok_or("the guest does not exist")?;
        let mut place = guest.disks[slot.number].lock().unwrap();
        let device = disk_device(domid(slot.guest), slot.number);
        if let Some(disk) = place.as_mut() {
            guest.serve_disk(disk, || close(client, &device, force))?;
        }
        *place = None;
        remove(client, &device)
    }

    fn detach_vif(&self, client: &mut Client, slot: Slot, force: bool) -> Outcome {
        let guest = self.guests[slot.guest].read().unwrap();
        let guest = guest.as_ref().ok_or("the guest does not exist")?;
        let mut place = guest.vifs[slot.number].lock().unwrap();
        let device = vif_device(domid(slot.guest), slot.number);
        if let Some(nic) = place.as_mut() {
            guest.serve_vif(nic, || close(client, &device, force))?;
        }
        *place = None;
        remove(client, &device)
    }

    /// Ends a domain; returns the removal of a guest, which has begun.
    fn interrupt(&self, victim: Victim) -> Option<Removal> {
        match victim {
            Victim::Guest(guest) => {
                self.guests[guest].read().unwrap().as_ref().unwrap().kill();
                Some(
                    Removal::start(&mut self.machine.client(), domid(guest), Some(domain::REAP_TIMEOUT))
                        .unwrap(),
                )
            }
            Victim::Dom0 | Victim::Dom0Exits => {
                let mut dom0 = self.dom0.lock().unwrap();
                match dom0.take() {
                    Some(old) if victim == Victim::Dom0 => old.kill(),
                    old => drop(old),
                }
                *dom0 = Some(Dom0::start(&self.machine));
                None
            }
        }
    }

    /// Writes to a disk, and reads it, until `done`, or until its guest is killed.
    fn exercise(&self, slot: Slot, image: usize, done: &AtomicBool) -> Outcome {
        let guest = self.guests[slot.guest].read().unwrap();
        let guest = guest.as_ref().ok_or("the guest does not exist")?;
        let mut place = guest.disks[slot.number].lock().unwrap();
        let disk = place.as_mut().ok_or("the disk does not exist")?;
        let mut image = self.images.get(image);
        let mut medium = DiskMedium { guest, disk };
        while !done.load(Ordering::Relaxed) && !guest.is_killed() {
            match image.content.exercise(&mut medium) {
                Ok(()) => thread::park_timeout(PACE),
                Err(ContentError::Io(_)) if guest.is_killed() => return Ok(()),
                Err(error) => return Err(format!("{slot:?} during the step: {error}")),
            }
        }
        Ok(())
    }

    fn check_disk(&self, client: &mut Client, slot: Slot, image: usize) -> Outcome {
        let guest = self.guests[slot.guest].read().unwrap();
        let guest = guest.as_ref().ok_or("the guest does not exist")?;
        let mut place = guest.disks[slot.number].lock().unwrap();
        let disk = place.as_mut().ok_or("the disk does not exist")?;
        let mut image = self.images.get(image);
        let checked = image.check(&mut DiskMedium { guest, disk });
        checked.map_err(|error| format!("{slot:?}: {error}"))?;
        are_connected(client, &disk_device(domid(slot.guest), slot.number))
    }

    fn check_vif(&mut self, client: &mut Client, slot: Slot) -> Outcome {
        self.tokens += 1;
        let guest = self.guests[slot.guest].read().unwrap();
        let guest = guest.as_ref().ok_or("the guest does not exist")?;
        let mut place = guest.vifs[slot.number].lock().unwrap();
        let nic = place.as_mut().ok_or("the interface does not exist")?;
        let mut dom0 = self.dom0.lock().unwrap();
        exchange(nic, dom0.as_mut().unwrap(), self.tokens).map_err(|error| format!("{slot:?}: {error}"))?;
        are_connected(client, &vif_device(domid(slot.guest), slot.number))
    }
}

impl Executor for Threads {
    fn perform(&mut self, step: &Step, before: &State) -> Outcome {
        self.has_served &= !step.replaces_dom0();
        let killed = |guest: usize| step.ends(Victim::Guest(guest));
        let untouched = step.untouched_disks(before);
        let done = AtomicBool::new(false);
        let this = &*self;
        let (outcomes, exercised, removal) = thread::scope(|scope| {
            let exercises = untouched.iter().map(|(slot, image)| {
                let done = &done;
                scope.spawn(move || this.exercise(*slot, *image, done))
            });
            let exercises: Vec<_> = exercises.collect();
            let operations =
                step.operations.iter().map(|o| scope.spawn(move || this.carry_out(o, step, before)));
            let operations: Vec<_> = operations.collect();
            let removal = step.interruption.and_then(|interruption| {
                thread::park_timeout(USUAL * interruption.moment / 1000);
                this.interrupt(interruption.victim)
            });
            let outcomes: Vec<Outcome> = operations.into_iter().map(|o| o.join().unwrap()).collect();
            done.store(true, Ordering::Relaxed);
            (outcomes, exercises.into_iter().try_for_each(|e| e.join().unwrap()), removal)
        });
        exercised?;
        for (operation, outcome) in step.operations.iter().zip(outcomes) {
            let Err(error) = outcome else { continue };
            if step.replaces_dom0() && !operation.must_fail() {
                self.carry_out(operation, step, before)
                    .map_err(|again| format!("{operation:?}: {error}; again: {again}"))?;
            } else if !killed(operation.guest()) {
                return Err(format!("{operation:?}: {error}"));
            }
        }
        match (step.interruption.map(|interruption| interruption.victim), removal) {
            (Some(Victim::Guest(guest)), Some(removal)) => self.reap(guest, removal),
            _ => Ok(()),
        }
    }

    fn check(&mut self, state: &State) -> Outcome {
        let client = &mut self.machine.client();
        state.disks().try_for_each(|(slot, image)| self.check_disk(client, slot, image))?;
        for slot in state.vifs().collect::<Vec<_>>() {
            self.check_vif(client, slot)?;
        }
        self.has_served |= state.uses_both_backends();
        for guest in 0..GUESTS {
            match &state.guests[guest] {
                Some(devices) => check_absent(client, domid(guest), devices)?,
                None => check_no_guest(client, domid(guest))?,
            }
        }
        let free = (0..IMAGES).filter(|image| state.user(*image).is_none());
        free.into_iter().try_for_each(|image| {
            let mut checked = Ok(());
            wait("an image to be free", RELEASE, || {
                checked = self.images.check_free(image);
                checked.is_ok()
            })
            .and(checked)
        })
    }

    fn figures(&mut self, state: &State) -> Vec<Figure> {
        if !self.has_served {
            return Vec::new();
        }
        let [guests, disks, vifs] = state.counts();
        let name = format!("{guests} guests with {disks} disks and {vifs} interfaces");
        // A guest's arena is mapped by the guest and by dom0.
        let mut figures = process_figures(std::process::id(), &name, 2 * GUESTS).unwrap();
        figures.push(Figure::exact(format!("nodes of {name}"), count_values(&mut self.machine.client())));
        figures
    }
}
