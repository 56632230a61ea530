//! Flushes that fail, and what is acknowledged after one.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blkback::engine::{Completion, FlushState, IoRequest, Operation, RamDisk};
use blkback::{Disk, DiskInfo, Engine, VbdDriver};
use ring_abi::DomId;
use ring_abi::blkif::{OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, Status, key};
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::{FrontendDevice, Machine};
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
        Ok(self.0.state.guard(Box::new(engine)))
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
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let ram = RamDisk::new(DiskInfo::new(1024)).unwrap();
    let disk = Shared(Arc::new(TestDisk { ram, errno, flushes: AtomicU32::new(0), state: Arc::default() }));
    let opener = Box::new(move |_: &_, _: &_| Ok(Arc::new(disk.clone()) as Arc<dyn Disk>));
    let back = Backend::start_with(VbdDriver::with_opener(hv.clone(), hv.clone(), opener), &hv);
    let device = machine.attach_disk(GUEST, XVDA, "by the opener");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    (machine, back, RawFrontend::connect(device, key::PROTOCOL_X86_64, false))
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
