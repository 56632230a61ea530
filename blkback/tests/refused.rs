//! What a disk's engine needs and does not get is refused before the frontend is told that it is connected.

use std::io;
use std::sync::Arc;

use blkback::engine::RamDisk;
use blkback::{Disk, DiskInfo, Engine, VbdDriver};
use ring_abi::DomId;
use testkit::Machine;
use testkit::block::{Backend, GUEST, XVDA, options, try_open};
use xenbus::{DeviceEnd, XenbusState};

/// A disk for which no engine can be made.
struct DeadDisk(RamDisk);

impl Disk for DeadDisk {
    fn name(&self) -> String {
        "dead".into()
    }
    fn info(&self) -> io::Result<DiskInfo> {
        self.0.info()
    }
    fn engine(&self, _: usize) -> io::Result<Box<dyn Engine>> {
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }
}

/// Attaches a disk to the guest, and asserts that it is refused with an error that contains all of `words`.
fn assert_refused(machine: &Machine, target: &str, words: &[&str]) {
    let device = machine.attach_disk(GUEST, XVDA, target);
    assert!(try_open(&machine.domain(GUEST), options()).is_err(), "connected to a dead disk");
    // It is Closed once the frontend is, too.
    machine.wait_for("the backend closes", |client| {
        let state = DeviceEnd::back(&device).state(client).unwrap();
        matches!(state, XenbusState::Closing | XenbusState::Closed)
    });
    let error = machine.backend_error(&device).unwrap();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn disk_without_an_engine_is_refused_before_it_is_connected() {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    let disk: Arc<dyn Disk> = Arc::new(DeadDisk(RamDisk::new(DiskInfo::new(1024)).unwrap()));
    let driver = VbdDriver::with_opener(dom0.clone(), dom0.clone(), Box::new(move |_, _| Ok(disk.clone())));
    let _back = Backend::start_with(driver, &dom0);
    assert_refused(&machine, "by the opener", &["12 ", "disk engine: ", "Cannot allocate memory"]);
}
