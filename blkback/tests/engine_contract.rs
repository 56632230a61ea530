//! A device whose engine starts its operations late.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use blkback::engine::{Completion, IoRequest, RamDisk};
use blkback::{Disk, DiskInfo, Engine, Tuning, VbdDriver};
use ring_abi::DomId;
use ring_abi::blkif::{OP_READ, Status, key};
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::{FrontendDevice, Machine};

/// A disk in memory with an engine of the test's.
struct TestDisk {
    ram: RamDisk,
    engine: fn(Box<dyn Engine>) -> Box<dyn Engine>,
}

impl Disk for TestDisk {
    fn name(&self) -> String {
        "test".into()
    }
    fn info(&self) -> io::Result<DiskInfo> {
        self.ram.info()
    }
    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        Ok((self.engine)(self.ram.engine(depth)?))
    }
}

/// A device that never polls its engine without a reason.
fn connect(engine: fn(Box<dyn Engine>) -> Box<dyn Engine>) -> (RawFrontend, Backend, Machine) {
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let disk: Arc<dyn Disk> = Arc::new(TestDisk { ram: RamDisk::new(DiskInfo::new(1024)).unwrap(), engine });
    let mut driver = VbdDriver::with_opener(hv.clone(), hv.clone(), Box::new(move |_, _| Ok(disk.clone())));
    driver.set_tuning(Tuning { busy_poll: Duration::ZERO, ..Tuning::default() });
    let back = Backend::start_with(driver, &hv);
    let device = machine.attach_disk(GUEST, XVDA, "by the opener");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    (RawFrontend::connect(device, key::PROTOCOL_X86_64, false), back, machine)
}

/// An engine that can start its operations at the fourth poll only.
struct LateEngine {
    engine: Box<dyn Engine>,
    waiting: Vec<IoRequest>,
    polls: u32,
}

impl Engine for LateEngine {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        self.waiting.append(requests);
        self.polls = 0;
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.polls += 1;
        if self.polls > 3 {
            self.engine.submit(&mut self.waiting);
        }
        self.engine.poll(completions)
    }
    fn needs_poll(&self) -> bool {
        !self.waiting.is_empty()
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.engine.fd()
    }
}

#[test]
fn operations_that_cannot_start_at_once_are_tried_again() {
    let (raw, ..) = &mut connect(|engine| Box::new(LateEngine { engine, waiting: Vec::new(), polls: 0 }));
    let read = raw.io(OP_READ, 1, 0, &[0]);
    raw.send(&[read]);
    assert_eq!(raw.receive(1)[0].status, Status::OKAY);
}
