//! A device that is detached is Closed once others can use its image.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkback::engine::{Closing, FileDisk, Mode, OpenError};
use blkback::{Disk, DiskInfo, Engine, VbdDriver};
use ring_abi::DomId;
use testkit::block::{Backend, GUEST, XVDA, open, options};
use testkit::{BOUND, Machine};
use xenbus::{DeviceEnd, XenbusState};

/// A disk whose file stays open for longer than the disk: somebody else has it, too.
struct Shared(Arc<FileDisk>);

impl Disk for Shared {
    fn name(&self) -> String {
        self.0.name()
    }
    fn info(&self) -> io::Result<DiskInfo> {
        self.0.info()
    }
    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        self.0.engine(depth)
    }
    fn closing(&self) -> Option<Closing> {
        self.0.closing()
    }
}

#[test]
fn detached_device_is_closed_only_once_its_image_is() {
    let machine = Machine::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let file = Arc::new(FileDisk::open(&path, Mode::Write, true).unwrap());
    let first = Mutex::new(Some(Arc::new(Shared(file.clone()))));
    let dom0 = machine.domain(DomId::DOM0);
    let opener = Box::new(move |_: &_, _: &_| Ok(first.lock().unwrap().take().unwrap() as Arc<dyn Disk>));
    let _back = Backend::start_with(VbdDriver::with_opener(dom0.clone(), dom0.clone(), opener), &dom0);
    let device = machine.attach_disk(GUEST, XVDA, "by the opener");
    let front = open(&machine.domain(GUEST), options());
    let disk = Arc::downgrade(&file);
    machine.detach(&device);
    drop(front);
    let deadline = Instant::now() + BOUND;
    while disk.strong_count() > 1 {
        assert!(Instant::now() < deadline, "the disk is not dropped");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let end = DeviceEnd::back(&device);
    for _ in 0..5 {
        std::thread::park_timeout(Duration::from_millis(20));
        assert_eq!(end.state(&mut machine.client()).unwrap(), XenbusState::Closing);
        assert!(matches!(FileDisk::open(&path, Mode::Write, true), Err(OpenError::InUse { .. })));
    }
    drop(file);
    machine.wait_for_state(end.path(), XenbusState::Closed);
    FileDisk::open(&path, Mode::Write, true).unwrap();
}
