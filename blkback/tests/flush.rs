//! Flushes that fail, and what is acknowledged after one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Instant;

use blkback::engine::{Completion, FlushState, IoRequest, Operation, RamDisk};
use blkback::{Disk, DiskInfo, Engine, VbdDriver};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_abi::DomId;
use ring_abi::blkif::{OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, Status, key};
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::{BOUND, FrontendDevice, Machine};
use xenstore::Nodes;

/// A disk in memory whose first flush fails.
struct TestDisk {
    ram: RamDisk,
    errno: i32,
    flushes: AtomicU32,
    state: Arc<FlushState>,
}

/// The disk, as its engines have it.
#[derive(Clone)]
struct Shared(Arc<TestDisk>);

impl Disk for Shared {
    fn name(&self) -> String {
        "test".into()
    }
    fn info(&self) -> io::Result<DiskInfo> {
        Ok(DiskInfo { flush: self.0.state.is_supported(), ..self.0.ram.info()? })
    }
    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        let engine = FailingOnce { disk: self.clone(), engine: self.0.ram.engine(depth)? };
        self.0.state.guard(Box::new(engine))
    }
}

struct FailingOnce {
    disk: Shared,
    engine: Box<dyn Engine>,
}

impl Engine for FailingOnce {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        self.engine.submit(requests);
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.engine.poll(completions)?;
        for completion in completions {
            if completion.request.operation() == Operation::Flush
                && self.disk.0.flushes.fetch_add(1, Ordering::Relaxed) == 0
            {
                completion.result = Err(io::Error::from_raw_os_error(self.disk.0.errno));
            }
        }
        Ok(())
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.engine.fd()
    }
}

/// A device whose disk's first flush fails with this error.
fn connect(errno: i32) -> (Machine, Backend, RawFrontend) {
    let ram = RamDisk::new(DiskInfo::new(1024)).unwrap();
    let disk = Shared(Arc::new(TestDisk { ram, errno, flushes: AtomicU32::new(0), state: Arc::default() }));
    let (machine, back, device) = serve(Arc::new(disk));
    (machine, back, RawFrontend::connect(device, key::PROTOCOL_X86_64, false))
}

/// A device with this disk, and up to two queues.
fn serve(disk: Arc<dyn Disk>) -> (Machine, Backend, FrontendDevice) {
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let opener = Box::new(move |_: &_, _: &_| Ok(disk.clone()));
    let mut driver = VbdDriver::with_opener(hv.clone(), hv.clone(), opener);
    driver.set_max_queues(2);
    let back = Backend::start_with(driver, &hv);
    let device = machine.attach_disk(GUEST, XVDA, "by the opener");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    (machine, back, device)
}

/// A disk whose first flush is complete when the test says so, as others are at once: like the kernel's, of which one reports an error.
#[derive(Clone)]
struct SlowFirst {
    ram: RamDisk,
    state: Arc<FlushState>,
    flushes: Arc<Flushes>,
}

struct Flushes {
    submitted: AtomicU32,
    /// Those that were handed back.
    done: AtomicU32,
    /// Readable once the first one is complete.
    first: EventFd,
    /// What it is complete with.
    errno: AtomicI32,
}

impl Disk for SlowFirst {
    fn name(&self) -> String {
        "slow".into()
    }
    fn info(&self) -> io::Result<DiskInfo> {
        self.ram.info()
    }
    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        let engine =
            SlowEngine { engine: self.ram.engine(depth)?, flushes: self.flushes.clone(), first: None };
        self.state.guard(Box::new(engine))
    }
}

struct SlowEngine {
    engine: Box<dyn Engine>,
    flushes: Arc<Flushes>,
    first: Option<IoRequest>,
}

impl Engine for SlowEngine {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        let flushes = &self.flushes;
        let is_first = |request: &mut IoRequest| {
            request.operation() == Operation::Flush && flushes.submitted.fetch_add(1, Ordering::SeqCst) == 0
        };
        self.first = requests.extract_if(.., is_first).next().or(self.first.take());
        self.engine.submit(requests);
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.engine.poll(completions)?;
        let flushes = completions.iter().filter(|c| c.request.operation() == Operation::Flush).count();
        self.flushes.done.fetch_add(flushes as u32, Ordering::SeqCst);
        if self.first.is_some() && self.flushes.first.read().is_ok() {
            let result = match self.flushes.errno.load(Ordering::SeqCst) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            };
            completions.extend(self.first.take().map(|request| Completion { request, result }));
        }
        Ok(())
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.flushes.first.as_fd()
    }
}

/// The statuses of two flushes at once of one disk, by so many queues; the first one ends last, with this error.
fn flush_at_once(queues: usize, errno: i32) -> Vec<Status> {
    let first = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let flushes =
        Flushes { submitted: AtomicU32::new(0), done: AtomicU32::new(0), first, errno: errno.into() };
    let flushes = Arc::new(flushes);
    let ram = RamDisk::new(DiskInfo::new(1024)).unwrap();
    let disk = SlowFirst { ram, state: Arc::default(), flushes: flushes.clone() };
    let (_machine, _back, device) = serve(Arc::new(disk));
    let mut rings: Vec<RawFrontend> = match queues {
        1 => vec![RawFrontend::connect(device, key::PROTOCOL_X86_64, false)],
        _ => RawFrontend::connect_queues(&device, key::PROTOCOL_X86_64, queues),
    };
    let wait_for = |count: &AtomicU32, wanted| {
        let start = Instant::now();
        while count.load(Ordering::SeqCst) < wanted {
            assert!(start.elapsed() < BOUND, "no flush within {BOUND:?}");
            std::thread::yield_now();
        }
    };
    for number in 0..2 {
        let ring = &mut rings[number % queues];
        let request = ring.io(OP_FLUSH_DISKCACHE, number as u64, 0, &[]);
        ring.send(&[request]);
        wait_for(&flushes.submitted, number as u32 + 1);
    }
    wait_for(&flushes.done, 1);
    flushes.first.write(1).unwrap();
    let responses = rings.iter_mut().flat_map(|ring| ring.receive(2 / queues));
    responses.map(|response| response.status).collect()
}

#[test]
fn flush_beside_one_that_fails_fails_too() {
    for queues in [1, 2] {
        assert_eq!(flush_at_once(queues, libc::EIO), [Status::ERROR; 2], "{queues} queues");
    }
}

#[test]
fn flush_beside_a_slow_one_succeeds_after_it() {
    for queues in [1, 2] {
        assert_eq!(flush_at_once(queues, 0), [Status::OKAY; 2], "{queues} queues");
        // A medium that has no flush has lost nothing.
        assert_eq!(
            flush_at_once(queues, libc::EINVAL),
            [Status::EOPNOTSUPP, Status::OKAY],
            "{queues} queues"
        );
    }
}

/// Sends a request and waits for its status.
fn status(raw: &mut RawFrontend, operation: u8) -> Status {
    let request = raw.io(operation, 1, 0, if operation == OP_FLUSH_DISKCACHE { &[] } else { &[0] });
    raw.send(&[request]);
    raw.receive(1)[0].status
}

#[test]
fn after_a_failed_flush_nothing_is_acknowledged_as_written() {
    let (_machine, _back, mut raw) = connect(libc::EIO);
    assert_eq!(status(&mut raw, OP_WRITE), Status::OKAY);
    assert_eq!(status(&mut raw, OP_FLUSH_DISKCACHE), Status::ERROR);
    for operation in [OP_WRITE, OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER, OP_WRITE] {
        assert_eq!(status(&mut raw, operation), Status::ERROR, "operation {operation}");
    }
    assert_eq!(status(&mut raw, OP_READ), Status::OKAY);
}

#[test]
fn barrier_whose_flush_fails_is_a_failed_flush_too() {
    let (_machine, _back, mut raw) = connect(libc::EIO);
    assert_eq!(status(&mut raw, OP_WRITE_BARRIER), Status::ERROR);
    assert_eq!(status(&mut raw, OP_WRITE), Status::ERROR);
}

#[test]
fn flush_that_the_medium_does_not_have_is_unsupported_and_withdrawn() {
    let (machine, back, mut raw) = connect(libc::EINVAL);
    assert_eq!(status(&mut raw, OP_FLUSH_DISKCACHE), Status::EOPNOTSUPP);
    assert_eq!(status(&mut raw, OP_WRITE), Status::OKAY);
    let path = format!("{}/{}", raw.device.device.back_path(), key::FEATURE_FLUSH_CACHE);
    let start = std::time::Instant::now();
    let mut store = machine.client();
    while store.read(&path).unwrap() != b"0" {
        assert!(start.elapsed() < testkit::BOUND, "the feature is still advertised");
        // The disk's properties are looked at while it is used.
        assert_eq!(status(&mut raw, OP_WRITE), Status::OKAY);
    }
    assert_eq!(status(&mut raw, OP_FLUSH_DISKCACHE), Status::EOPNOTSUPP);
    drop(back);
}
