//! Devices whose engines start their operations late, or drop them; and that are closed meanwhile.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use blkback::engine::{Completion, IoRequest, RamDisk};
use blkback::{DataPath, Disk, DiskInfo, Engine, Tuning, VbdDriver};
use ring_abi::DomId;
use ring_abi::blkif::{OP_READ, OP_WRITE, OP_WRITE_BARRIER, Status, key};
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::{FrontendDevice, Machine};
use xenbus::XenbusState;

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
fn connect(engine: fn(Box<dyn Engine>) -> Box<dyn Engine>) -> (Machine, Backend, RawFrontend) {
    connect_by(DataPath::Map, engine)
}

fn connect_by(
    data_path: DataPath,
    engine: fn(Box<dyn Engine>) -> Box<dyn Engine>,
) -> (Machine, Backend, RawFrontend) {
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let disk: Arc<dyn Disk> = Arc::new(TestDisk { ram: RamDisk::new(DiskInfo::new(8192)).unwrap(), engine });
    let mut driver = VbdDriver::with_opener(hv.clone(), hv.clone(), Box::new(move |_, _| Ok(disk.clone())));
    driver.set_tuning(Tuning { busy_poll: Duration::ZERO, data_path, ..Tuning::default() });
    driver.set_max_indirect_segments(512);
    let back = Backend::start_with(driver, &hv);
    let device = machine.attach_disk(GUEST, XVDA, "by the opener");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    (machine, back, RawFrontend::connect(device, key::PROTOCOL_X86_64, false))
}

/// An engine that cannot start its operations before it was polled so often.
struct LateEngine {
    late: u32,
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
        if self.polls > self.late {
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
    let (_machine, _back, mut raw) =
        connect(|engine| Box::new(LateEngine { late: 3, engine, waiting: Vec::new(), polls: 0 }));
    let read = raw.io(OP_READ, 1, 0, &[0]);
    raw.send(&[read]);
    assert_eq!(raw.receive(1)[0].status, Status::OKAY);
}

#[test]
fn barrier_that_was_taken_is_carried_out_before_the_device_closes() {
    // The frontend has closed long before the barrier's third operation starts.
    let (_machine, _back, mut raw) =
        connect(|engine| Box::new(LateEngine { late: 200, engine, waiting: Vec::new(), polls: 0 }));
    let requests = [raw.io(OP_WRITE, 1, 0, &[0]), raw.io(OP_WRITE_BARRIER, 2, 8, &[1])];
    raw.send(&requests);
    while raw.ring.pop().unwrap().is_none() {
        std::thread::yield_now();
    }
    raw.device.switch(XenbusState::Closed);
    assert_eq!(raw.receive(1)[0].status, Status::OKAY);
    raw.device.wait_for_backend(XenbusState::Closed);
}

/// An engine that drops every operation but those at the disk's start.
struct DroppingEngine(Box<dyn Engine>);

impl Engine for DroppingEngine {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        requests.retain(|request| request.sector() == 0);
        self.0.submit(requests);
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.0.poll(completions)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
}

#[test]
fn operations_that_are_dropped_fail() {
    let (_machine, _back, mut raw) = connect(|engine| Box::new(DroppingEngine(engine)));
    // More than the ring has slots.
    for id in 0..40 {
        let reads = [raw.io(OP_READ, 2 * id, 8, &[0]), raw.io(OP_READ, 2 * id + 1, 0, &[1])];
        raw.send(&reads);
        let statuses: Vec<_> = raw.receive(2).iter().map(|response| response.status).collect();
        assert_eq!(statuses, [Status::ERROR, Status::OKAY]);
    }
    assert!(raw.data.end().is_ok(), "nothing stays mapped");
}

/// Large requests wait for each other's buffers, also where an engine gives those up.
#[test]
fn requests_that_wait_for_memory_are_started_when_those_that_had_it_are_dropped() {
    let (_machine, _back, mut raw) = connect_by(DataPath::Copy, |engine| Box::new(DroppingEngine(engine)));
    let page = raw.data.refs()[0];
    let large: Vec<_> = (0..20).map(|id| raw.indirect(OP_READ, id, 8, &[page; 512])).collect();
    let (requests, _pages): (Vec<_>, Vec<_>) = large.into_iter().unzip();
    raw.send(&requests);
    assert!(raw.receive(20).iter().all(|response| response.status == Status::ERROR));
    let (read, _pages) = raw.indirect(OP_READ, 20, 0, &[page; 512]);
    raw.send(&[read]);
    assert_eq!(raw.receive(1)[0].status, Status::OKAY);
}
