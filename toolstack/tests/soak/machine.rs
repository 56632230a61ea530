//! The machine of processes, and the commands that are its operations.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hypervisor::local::{Control, DomainInfo};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::soak::nodes::{check_absent, check_no_guest, count_values, disk_device, vif_device};
use testkit::soak::{
    BLOCK, BadDisk, ContentError, DISKS, Executor, Figure, GUESTS, Guest, IMAGES, Images, Interruption,
    Medium, Operation, Slot, State, Step, VIFS, Victim, process_figures,
};
use toolstack::machine::progress::{self, States};
use xenbus::{Device, XenbusState};
use xenstore::{Client, DomId, Nodes};

use super::common::{BOUND, Machine, texts};
use super::frames;
use testkit::nbd::Nbd;

/// How long the operations of a step usually take.
const USUAL: Duration = Duration::from_millis(100);
/// The time between writes to a disk that the step does not concern.
const PACE: Duration = Duration::from_millis(5);
/// How long an image may be in use, or a node exist, after a guest or dom0 was killed or a disk removed by force.
const RELEASE: Duration = Duration::from_secs(10);

/// The bridge's port that is the test's.
const HOST: &str = "host0";

type Outcome = Result<(), String>;

/// The machine.
pub(crate) struct Processes {
    machine: Machine,
    images: Images,
    control: Control,
    store: Mutex<Client>,
    /// Frames sent.
    tokens: u64,
    /// The processes that have served devices: dom0 of both kinds, a guest of any.
    have_served: HashSet<u32>,
}

impl Processes {
    /// A machine without guests.
    pub(crate) fn new() -> Processes {
        let machine = Machine::with(&format!("[[bridges]]\nname = 'xenbr0'\nports = ['tap:{HOST}']\n"));
        let images = Images::new(&machine.path("")).unwrap();
        let control = Control::connect(machine.dir()).unwrap();
        let store = Mutex::new(machine.store());
        Processes { machine, images, control, store, tokens: 0, have_served: HashSet::new() }
    }

    fn carry_out(&self, operation: &Operation, step: &Step, before: &State) -> Outcome {
        use Operation::*;
        match operation {
            Create(guest, devices) => self.create(*guest, &self.cfg(*guest, devices)),
            CreateBad(guest, bad) => {
                let disk = format!("vdev=xvda,target={}", self.images.bad_path(*bad).display());
                self.create(*guest, &format!("name='{}'\ndisk=['{disk}']\n", name(*guest)))
            }
            Destroy(guest) => self.xpv(&["destroy", &name(*guest)]),
            AttachDisk(slot, image) => self.attach_disk(*slot, &self.images.path(*image)),
            AttachBadDisk(slot, bad) => self.attach_disk(*slot, &self.images.bad_path(*bad)),
            // An image of its own, so that only the slot is taken.
            AttachTakenDisk(slot) => self.attach_disk(*slot, &self.images.bad_path(BadDisk::Short)),
            AttachVif(slot) | AttachTakenVif(slot) => {
                self.xpv(&["network-attach", &name(slot.guest), &vif(*slot)])
            }
            DetachDisk(slot, force) => self.detach_disk(*slot, *force, step, before),
            DetachVif(slot, force) => {
                let number = slot.number.to_string();
                let guest = name(slot.guest);
                let all = ["network-detach", &guest, &number, "--force"];
                self.xpv(&all[..if *force { 4 } else { 3 }])
            }
        }
    }

    fn xpv(&self, arguments: &[&str]) -> Outcome {
        let output = self.machine.xpv(arguments);
        match output.status.success() {
            true => Ok(()),
            false => Err(texts(&output).1.trim().to_owned()),
        }
    }

    fn cfg(&self, guest: usize, devices: &Guest) -> String {
        let disks = devices.disks.iter().enumerate().filter_map(|(number, image)| {
            let path = self.images.path((*image)?);
            Some(format!("'vdev={},target={}'", dev(number), path.display()))
        });
        let vifs = (0..VIFS).filter(|number| devices.vifs[*number]);
        let vifs = vifs.map(|number| format!("'{}'", vif(Slot { guest, number })));
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        let (disks, vifs) = (list(&mut { disks }), list(&mut { vifs }));
        format!("name='{}'\ndisk=[{disks}]\nvif=[{vifs}]\n", name(guest))
    }

    fn create(&self, guest: usize, cfg: &str) -> Outcome {
        let file = self.machine.file(&format!("{}.cfg", name(guest)), cfg);
        self.xpv(&["create", &file.display().to_string()])
    }

    fn attach_disk(&self, slot: Slot, image: &Path) -> Outcome {
        let disk = format!("{},raw,{},rw", image.display(), dev(slot.number));
        self.xpv(&["block-attach", &name(slot.guest), &disk])
    }

    /// Detaches a disk. The guest may need a moment to notice that its NBD client has closed it.
    fn detach_disk(&self, slot: Slot, force: bool, step: &Step, before: &State) -> Outcome {
        let guest = name(slot.guest);
        let dev = dev(slot.number);
        if force {
            return self.xpv(&["block-detach", &guest, &dev, "--force"]);
        }
        let deadline = Instant::now() + BOUND;
        let mut outcome = self.xpv(&["block-detach", &guest, &dev]);
        while outcome.as_ref().is_err_and(|error| error.contains("in use")) && Instant::now() < deadline {
            outcome = self.xpv(&["block-detach", &guest, &dev]);
        }
        let is_interrupted = step.replaces_dom0() || step.ends(Victim::Guest(slot.guest));
        match before.image(slot) {
            Some(image) if !is_interrupted => outcome.and_then(|()| self.images.check_unlocked(image)),
            _ => outcome,
        }
    }

    /// The running domain of this name.
    fn domain(&self, name: &str) -> Option<DomainInfo> {
        self.control.list().unwrap().into_iter().find(|domain| domain.name == name)
    }

    fn pid(&self, name: &str) -> Option<u32> {
        self.domain(name)?.pid
    }

    fn domid(&self, guest: usize) -> Result<DomId, String> {
        Ok(self.domain(&name(guest)).ok_or_else(|| format!("{} does not exist", name(guest)))?.domid)
    }

    /// Ends a domain, and waits for the next dom0 or for the end of the guest.
    fn interrupt(&self, interruption: Interruption, pid: u32) -> Outcome {
        thread::park_timeout(USUAL * interruption.moment / 1000);
        let signal = if interruption.victim == Victim::Dom0Exits { Signal::SIGTERM } else { Signal::SIGKILL };
        kill(Pid::from_raw(pid.cast_signed()), signal).map_err(|error| error.to_string())?;
        match interruption.victim {
            Victim::Guest(guest) => wait("the end of a guest", BOUND, || {
                self.domain(&name(guest)).is_none().then_some(()).ok_or_else(String::new)
            }),
            _ => wait("the next dom0", BOUND, || match self.pid("Domain-0") {
                Some(next) if next != pid => Ok(()),
                other => Err(format!("{other:?}")),
            }),
        }
    }

    fn socket(&self, slot: Slot) -> PathBuf {
        self.machine.dir().join(name(slot.guest)).join(format!("{}.nbd", dev(slot.number)))
    }

    fn open(&self, slot: Slot) -> Result<NbdMedium, ContentError> {
        Ok(NbdMedium(Nbd::connect(&self.socket(slot))?))
    }

    /// Writes to a disk, and reads it, until `done`, or until its guest is killed.
    fn exercise(&self, slot: Slot, image: usize, is_killed: bool, done: &AtomicBool) -> Outcome {
        let mut image = self.images.get(image);
        let exercised = self.open(slot).and_then(|mut medium| {
            while !done.load(Ordering::Relaxed) {
                image.content.exercise(&mut medium)?;
                thread::park_timeout(PACE);
            }
            Ok(())
        });
        match exercised {
            Err(ContentError::Io(_)) if is_killed => Ok(()),
            other => other.map_err(|error| format!("{slot:?} during the step: {error}")),
        }
    }

    fn check_disk(&mut self, slot: Slot, image: usize) -> Outcome {
        let domid = self.domid(slot.guest)?;
        let failed = |error: &dyn std::fmt::Display| format!("{slot:?}: {error}");
        let mut medium = self.open(slot).map_err(|error| failed(&error))?;
        self.images.get(image).check(&mut medium).map_err(|error| failed(&error))?;
        are_connected(self.store.get_mut().unwrap(), &disk_device(domid, slot.number))
    }

    fn check_vif(&mut self, slot: Slot) -> Outcome {
        let domid = self.domid(slot.guest)?;
        let device = vif_device(domid, slot.number);
        are_connected(self.store.get_mut().unwrap(), &device)?;
        let tap = tap(domid, slot.number);
        self.tokens += 2;
        frames::send(&tap, HOST, mac(slot), self.tokens)?;
        frames::send(HOST, &tap, [2, 0, 0, 0, 0, 1], self.tokens + 1)?;
        are_connected(self.store.get_mut().unwrap(), &device)
    }

    /// Checks that a guest has the devices of a state only.
    fn check_guest(&mut self, guest: usize, state: &State) -> Outcome {
        let Some(devices) = &state.guests[guest] else {
            return match self.domain(&name(guest)) {
                Some(domain) => Err(format!("{domain:?} exists")),
                None => Ok(()),
            };
        };
        let domid = self.domid(guest)?;
        check_absent(self.store.get_mut().unwrap(), domid, devices)?;
        for number in (0..DISKS).filter(|number| devices.disks[*number].is_none()) {
            check_no_file(&self.socket(Slot { guest, number }))?;
        }
        let vifs = (0..VIFS).filter(|number| !devices.vifs[*number]);
        vifs.into_iter()
            .try_for_each(|number| check_no_file(&Path::new("/sys/class/net").join(tap(domid, number))))
    }

    /// Checks that no node of a guest remains that does not exist.
    fn check_no_other_guest(&mut self) -> Outcome {
        let domains: Vec<DomId> = self.control.list().unwrap().iter().map(|domain| domain.domid).collect();
        let parents =
            ["/local/domain", "/libxl", "/local/domain/0/backend/vbd", "/local/domain/0/backend/vif"];
        let store = self.store.get_mut().unwrap();
        let names = parents.into_iter().flat_map(|parent| store.directory(parent).unwrap_or_default());
        let found: Vec<DomId> = names.filter_map(|name| name.parse().ok()).collect();
        let dead = found.into_iter().find(|domid| !domains.contains(domid));
        dead.map_or(Ok(()), |domid| check_no_guest(self.store.get_mut().unwrap(), domid))
    }
}

impl Executor for Processes {
    fn perform(&mut self, step: &Step, before: &State) -> Outcome {
        let killed = |guest: usize| step.ends(Victim::Guest(guest));
        let untouched = step.untouched_disks(before);
        let victim = step.interruption.map(|interruption| match interruption.victim {
            Victim::Guest(guest) => name(guest),
            _ => "Domain-0".to_owned(),
        });
        let pid = victim.and_then(|name| self.pid(&name));
        let done = AtomicBool::new(false);
        let this = &*self;
        let (outcomes, exercised) = thread::scope(|scope| {
            let exercises = untouched.iter().map(|(slot, image)| {
                let done = &done;
                scope.spawn(move || this.exercise(*slot, *image, killed(slot.guest), done))
            });
            let exercises: Vec<_> = exercises.collect();
            let operations = step.operations.iter();
            let operations = operations.map(|o| scope.spawn(move || this.carry_out(o, step, before)));
            let operations: Vec<_> = operations.collect();
            let interrupted =
                step.interruption.zip(pid).map_or(Ok(()), |(what, pid)| this.interrupt(what, pid));
            let outcomes: Vec<Outcome> = operations.into_iter().map(|o| o.join().unwrap()).collect();
            done.store(true, Ordering::Relaxed);
            let exercised = exercises.into_iter().try_for_each(|e| e.join().unwrap());
            (outcomes, interrupted.and(exercised))
        });
        exercised?;
        for (operation, outcome) in step.operations.iter().zip(outcomes) {
            match outcome {
                Ok(()) if operation.must_fail() => return Err(format!("{operation:?} succeeded")),
                Err(error) if step.replaces_dom0() && !operation.must_fail() => {
                    let again = self.carry_out(operation, step, before);
                    again.map_err(|again| format!("{operation:?}: {error}; again: {again}"))?;
                }
                Err(error) if !operation.must_fail() && !killed(operation.guest()) => {
                    return Err(format!("{operation:?}: {error}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&mut self, state: &State) -> Outcome {
        for (slot, image) in state.disks().collect::<Vec<_>>() {
            self.check_disk(slot, image)?;
        }
        for slot in state.vifs().collect::<Vec<_>>() {
            self.check_vif(slot)?;
        }
        let dom0 = self.pid("Domain-0").filter(|_| state.uses_both_backends());
        let guests = state.guests().filter(|(_, devices)| devices.counts() != [0, 0]);
        let guests: Vec<u32> = guests.filter_map(|(guest, _)| self.pid(&name(guest))).collect();
        self.have_served.extend(dom0.into_iter().chain(guests));
        for guest in 0..GUESTS {
            // The guest removes a socket and a tap after its end of the device was closed.
            wait("devices to be gone", RELEASE, || self.check_guest(guest, state))?;
        }
        wait("nodes of dead guests to be removed", RELEASE, || self.check_no_other_guest())?;
        let free = (0..IMAGES).filter(|image| state.user(*image).is_none());
        free.into_iter()
            .try_for_each(|image| wait("an image to be free", RELEASE, || self.images.check_free(image)))
    }

    fn figures(&mut self, state: &State) -> Vec<Figure> {
        let [guests, disks, vifs] = state.counts();
        let load = format!("{guests} guests with {disks} disks and {vifs} interfaces");
        let nodes = count_values(self.store.get_mut().unwrap());
        let served = |name: &str| self.pid(name).filter(|pid| self.have_served.contains(pid));
        let dom0 = served("Domain-0");
        let mut processes = vec![(dom0, format!("dom0 for {load}"), GUESTS)];
        for (guest, devices) in state.guests() {
            let [disks, vifs] = devices.counts();
            let what = format!("a guest with {disks} disks and {vifs} interfaces");
            processes.push((served(&name(guest)), what, 1));
        }
        // It has connections of all the others.
        let hypervisor = u32::try_from(self.machine.hypervisor()).ok();
        let hypervisor = hypervisor.filter(|_| processes.iter().all(|(pid, ..)| pid.is_some()));
        processes.push((hypervisor, format!("the hypervisor for {load}"), 2 * GUESTS));
        let figures = processes.into_iter().flat_map(|(pid, what, arenas)| {
            // A process that has just exited has none.
            pid.and_then(|pid| process_figures(pid, &what, arenas).ok()).unwrap_or_default()
        });
        figures.chain([Figure::exact(format!("nodes of {load}"), nodes)]).collect()
    }
}

fn name(guest: usize) -> String {
    format!("guest{guest}")
}

fn dev(number: usize) -> String {
    format!("xvd{}", char::from(b'a' + number as u8))
}

fn mac(slot: Slot) -> [u8; 6] {
    [0, 0x16, 0x3e, 0, slot.guest as u8, slot.number as u8]
}

fn vif(slot: Slot) -> String {
    format!("mac={},bridge=xenbr0,devid={}", ring_abi::netif::Mac(mac(slot)), slot.number)
}

fn tap(domid: DomId, number: usize) -> String {
    format!("vif{domid}.{number}")
}

fn are_connected(store: &mut Client, device: &Device) -> Outcome {
    let connected = Some(XenbusState::Connected);
    wait(&format!("{} to be connected", device.front_path()), BOUND, || {
        match progress::states(store, device) {
            Ok(states) if states == (States { front: connected, back: connected }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

fn check_no_file(path: &Path) -> Outcome {
    if fs::symlink_metadata(path).is_ok() { Err(format!("{} exists", path.display())) } else { Ok(()) }
}

fn wait(what: &str, bound: Duration, mut check: impl FnMut() -> Outcome) -> Outcome {
    let deadline = Instant::now() + bound;
    while let Err(error) = check() {
        if Instant::now() >= deadline {
            return Err(format!("waited {bound:?} for {what}: {error}"));
        }
        thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}

/// A disk by its NBD export.
struct NbdMedium(Nbd);

impl Medium for NbdMedium {
    fn read(&mut self, block: u64, into: &mut [u8; BLOCK]) -> io::Result<()> {
        *into = self.0.read(block)?;
        Ok(())
    }

    fn write(&mut self, blocks: &[(u64, [u8; BLOCK])]) -> io::Result<()> {
        blocks.iter().try_for_each(|(block, bytes)| self.0.send_write(*block, bytes))?;
        blocks.iter().try_for_each(|_| self.0.written().map(drop))
    }
}
