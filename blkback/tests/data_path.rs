//! The data paths: pages mapped for each request, mapped persistently, copied; and copied where the kernel cannot pin
//! mapped pages.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use blkback::engine::{BouncePool, Completion, IoRequest, Mode, RamDisk, Spec, open};
use blkback::{DataPath, Disk, DiskInfo, Engine, Tuning, VbdDriver};
use grant_table::{Access, Contiguous, CopyOp, GrantTable, Mapping, Shared};
use ring_abi::blkif::{MAX_SEGMENTS, OP_READ, OP_WRITE, Status, key};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::random::bytes;
use testkit::{FrontendDevice, Machine};

/// A disk whose operations in guests' pages fail with an errno, but for the first ones, so many.
struct UnpinnableDisk {
    disk: Arc<dyn Disk>,
    lucky: usize,
    errno: i32,
}

impl Disk for UnpinnableDisk {
    fn name(&self) -> String {
        "unpinnable".into()
    }
    fn info(&self) -> io::Result<DiskInfo> {
        self.disk.info()
    }
    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        let UnpinnableDisk { lucky, errno, .. } = *self;
        let engine = self.disk.engine(depth)?;
        Ok(Box::new(UnpinnableEngine { engine, lucky, errno, refused: Vec::new() }))
    }
}

struct UnpinnableEngine {
    engine: Box<dyn Engine>,
    lucky: usize,
    errno: i32,
    refused: Vec<Completion>,
}

impl Engine for UnpinnableEngine {
    fn register(&mut self, pool: &BouncePool) -> bool {
        self.engine.register(pool)
    }
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        let mut is_refused = |request: &IoRequest| {
            let is_lucky = self.lucky > 0;
            self.lucky = self.lucky.saturating_sub(1);
            !is_lucky && is_in_granted_pages(request)
        };
        let (refused, mut others): (Vec<_>, Vec<_>) = requests.drain(..).partition(|one| is_refused(one));
        let error = || Err(io::Error::from_raw_os_error(self.errno));
        self.refused.extend(refused.into_iter().map(|request| Completion { request, result: error() }));
        self.engine.submit(&mut others);
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.refused);
        self.engine.poll(completions)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.engine.fd()
    }
}

/// Whether an operation's memory is the guest's: on the local hypervisor, part of a memfd.
fn is_in_granted_pages(request: &IoRequest) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let granted = |address: usize| {
        maps.lines().filter(|line| line.contains("/memfd:")).any(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let hex = |text| usize::from_str_radix(text, 16).unwrap();
            (hex(start)..hex(end)).contains(&address)
        })
    };
    request.iovecs().iter().any(|one| granted(one.iov_base.addr()))
}

/// Serves a disk; `budget` is of pages that may stay mapped.
fn connect(disk: Arc<dyn Disk>, data_path: DataPath, budget: usize) -> (Machine, Backend, RawFrontend) {
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::with_opener(hv.clone(), hv.clone(), Box::new(move |_, _| Ok(disk.clone())));
    driver.set_tuning(Tuning { data_path, ..Tuning::default() });
    driver.set_max_persistent_grants(budget);
    let back = Backend::start_with(driver, &hv);
    let device = machine.attach_disk(GUEST, XVDA, "by the opener");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    (machine, back, RawFrontend::connect(device, key::PROTOCOL_X86_64, true))
}

/// A budget that no test uses up.
const PAGES: usize = 1000;

/// Writes pages and reads them into others; returns whether the guest's pages are still mapped after that.
fn stays_mapped(disk: Arc<dyn Disk>, data_path: DataPath, budget: usize) -> bool {
    let (_machine, _back, mut raw) = connect(disk, data_path, budget);
    let written = bytes(7, 3 * PAGE_SIZE);
    raw.data.slice(0, written.len()).unwrap().copy_from(&written);
    let requests = [raw.io(OP_WRITE, 1, 64, &[0, 1, 2]), raw.io(OP_READ, 2, 64, &[3, 4, 5])];
    for request in requests {
        raw.send(&[request]);
        assert_eq!(raw.receive(1)[0].status, Status::OKAY, "{data_path:?}");
    }
    let mut read = vec![0; written.len()];
    raw.data.slice(3 * PAGE_SIZE, read.len()).unwrap().copy_to(&mut read);
    assert!(read == written, "{data_path:?}");
    // A page that is not granted fails that request alone.
    let invalid = raw.io_of(OP_WRITE, 3, 64, [GrantRef(4000)]);
    let valid = raw.io(OP_READ, 4, 0, &[6]);
    raw.send(&[invalid, valid]);
    let statuses: Vec<_> = raw.receive(2).iter().map(|response| response.status).collect();
    assert_eq!(statuses, [Status::ERROR, Status::OKAY], "{data_path:?}");
    raw.data.end().is_err()
}

fn ram() -> RamDisk {
    RamDisk::new(DiskInfo::new(1024)).unwrap()
}

#[test]
fn every_data_path_transfers_the_same_bytes() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(512 << 10).unwrap();
    for (data_path, budget, stays) in [
        (DataPath::Map, PAGES, false),
        (DataPath::Copy, PAGES, false),
        (DataPath::Persistent, PAGES, true),
        // Of the pages of a request some are mapped, or none: it is copied.
        (DataPath::Persistent, 4, true),
        (DataPath::Persistent, 0, false),
    ] {
        assert_eq!(stays_mapped(Arc::new(ram()), data_path, budget), stays, "{data_path:?}, {budget}");
        // By io_uring, which registers the bounce pool.
        let file = open(&Spec::raw(image.path(), Mode::Write)).unwrap();
        assert_eq!(stays_mapped(file, data_path, budget), stays, "{data_path:?}, {budget}, a file");
    }
}

#[test]
fn only_pages_that_were_reached_are_counted() {
    for (data_path, budget, expected) in [
        (DataPath::Map, PAGES, [0, 0]),
        (DataPath::Copy, PAGES, [0, 1]),
        (DataPath::Persistent, PAGES, [1, 0]),
        (DataPath::Persistent, 0, [0, 1]),
    ] {
        let (_machine, back, mut raw) = connect(Arc::new(ram()), data_path, budget);
        let half_valid = raw.io_of(OP_WRITE, 1, 0, [raw.data.refs()[0], GrantRef(4000)]);
        raw.send(&[half_valid]);
        assert_eq!(raw.receive(1)[0].status, Status::ERROR);
        let stats = back.registry.get((GUEST, XVDA)).unwrap().stats.unwrap();
        let pages = stats.snapshot().grants.unwrap();
        assert_eq!(([pages.mapped, pages.copied], pages.reused), (expected, Some(0)), "{data_path:?}");
    }
}

#[test]
fn pages_that_the_kernel_cannot_pin_are_copied() {
    for (data_path, stays) in [(DataPath::Map, false), (DataPath::Persistent, true)] {
        for lucky in [0, 1] {
            let disk = Arc::new(UnpinnableDisk { disk: Arc::new(ram()), lucky, errno: libc::EFAULT });
            assert_eq!(stays_mapped(disk, data_path, PAGES), stays, "{data_path:?}, {lucky}");
        }
    }
}

/// The local hypervisor's grant table, as one of whose pages the kernel is to do no I/O in.
struct NotForIo(Arc<dyn GrantTable>);

impl GrantTable for NotForIo {
    fn domid(&self) -> DomId {
        self.0.domid()
    }
    fn share(&self, peer: DomId, pages: usize, access: Access) -> grant_table::Result<Shared> {
        self.0.share(peer, pages, access)
    }
    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> grant_table::Result<Mapping> {
        self.0.map(peer, refs, access)
    }
    fn map_contiguous(
        &self,
        peer: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> grant_table::Result<Contiguous> {
        self.0.map_contiguous(peer, refs, access)
    }
    fn maps_for_io(&self) -> bool {
        false
    }
    fn copy(&self, ops: &mut [CopyOp<'_>]) -> grant_table::Result<()> {
        self.0.copy(ops)
    }
}

#[test]
fn kernel_does_no_io_in_mapped_pages_that_are_not_for_io() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(512 << 10).unwrap();
    for data_path in [DataPath::Map, DataPath::Persistent, DataPath::Copy] {
        for persistent in [true, false] {
            let machine = Machine::new();
            let hv = machine.domain(DomId::DOM0);
            let file = open(&Spec::raw(image.path(), Mode::Write)).unwrap();
            // Another error than EFAULT, after which a request would be copied.
            let disk: Arc<dyn Disk> = Arc::new(UnpinnableDisk { disk: file, lucky: 0, errno: libc::EINVAL });
            let opener = Box::new(move |_: &_, _: &_| Ok(disk.clone()));
            let mut driver = VbdDriver::with_opener(Arc::new(NotForIo(hv.clone())), hv.clone(), opener);
            driver.set_tuning(Tuning { data_path, ..Tuning::default() });
            let _back = Backend::start_with(driver, &hv);
            let device = machine.attach_disk(GUEST, XVDA, "by the opener");
            let device = FrontendDevice::new(machine.domain(GUEST), device);
            let mut raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, persistent);
            // More pages at once than are registered with the kernel.
            let pages: Vec<usize> = (0..MAX_SEGMENTS).collect();
            let requests: Vec<_> = (0..16).map(|id| raw.io(OP_WRITE, id, 0, &pages)).collect();
            raw.send(&requests);
            for response in raw.receive(16) {
                assert_eq!(response.status, Status::OKAY, "{data_path:?}, persistent {persistent}");
            }
        }
    }
}
