//! The ways to a guest's pages: mapped for each request, kept mapped, copied; and copied where the kernel refuses.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use blkback::engine::{Done, Io, Mode, RamDisk, Spec, open};
use blkback::{DataPath, Disk, DiskInfo, Engine, Tuning, VbdDriver};
use hypervisor::DomId;
use ring_abi::PAGE_SIZE;
use ring_abi::blkif::{OP_READ, OP_WRITE, Status};
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::random::bytes;
use testkit::{FrontendDevice, Machine};
use vm_memory::Bytes;

/// A disk whose kernel cannot take hold of guests' pages.
struct Picky(RamDisk);

impl Disk for Picky {
    fn name(&self) -> String {
        "picky".into()
    }
    fn info(&self) -> io::Result<DiskInfo> {
        self.0.info()
    }
    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(PickyEngine { engine: self.0.engine(depth)?, refused: Vec::new() }))
    }
}

struct PickyEngine {
    engine: Box<dyn Engine>,
    refused: Vec<Done>,
}

impl Engine for PickyEngine {
    fn submit(&mut self, io: Box<Io>) -> Result<(), Box<Io>> {
        if !io.is_guests() {
            return self.engine.submit(io);
        }
        self.refused.push(Done { io, result: Err(io::Error::from_raw_os_error(libc::EFAULT)) });
        Ok(())
    }
    fn poll(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        done.append(&mut self.refused);
        self.engine.poll(done)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.engine.fd()
    }
}

/// Writes pages and reads them into others; says whether the guest's pages are still mapped after that.
fn stays_mapped(disk: Arc<dyn Disk>, data_path: DataPath) -> bool {
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::with_opener(hv.clone(), Box::new(move |_, _| Ok(disk.clone())));
    driver.set_tuning(Tuning { data_path, ..Tuning::default() });
    let _back = Backend::start_with(driver, &hv);
    let device = machine.attach_disk(GUEST, XVDA, "by the opener");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let mut raw: RawFrontend = RawFrontend::connect(device, "x86_64-abi", true);

    let written = bytes(7, 3 * PAGE_SIZE);
    raw.data.slice(0, written.len()).unwrap().write_slice(&written, 0).unwrap();
    let requests = [raw.io(OP_WRITE, 1, 64, &[0, 1, 2]), raw.io(OP_READ, 2, 64, &[3, 4, 5])];
    for request in requests {
        raw.send(&[request]);
        assert_eq!(raw.receive(1)[0].status, Status::OKAY, "{data_path:?}");
    }
    let mut read = vec![0; written.len()];
    raw.data.slice(3 * PAGE_SIZE, read.len()).unwrap().read_slice(&mut read, 0).unwrap();
    assert!(read == written, "{data_path:?}");
    // A page that is not granted is that request's error alone.
    let bad = raw.io_of(OP_WRITE, 3, 64, [hypervisor::GrantRef(4000)]);
    let good = raw.io(OP_READ, 4, 0, &[6]);
    raw.send(&[bad, good]);
    let statuses: Vec<_> = raw.receive(2).iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [Status::ERROR, Status::OKAY], "{data_path:?}");
    raw.data.end().is_err()
}

fn ram() -> RamDisk {
    RamDisk::new(DiskInfo::new(1024)).unwrap()
}

#[test]
fn every_way_moves_the_same_bytes() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(512 << 10).unwrap();
    for (data_path, stays) in [(DataPath::Map, false), (DataPath::Copy, false), (DataPath::Persistent, true)]
    {
        assert_eq!(stays_mapped(Arc::new(ram()), data_path), stays, "{data_path:?}");
        // By io_uring, which registers what is copied to and from.
        let file = open(&Spec::raw(image.path(), Mode::Write)).unwrap();
        assert_eq!(stays_mapped(file, data_path), stays, "{data_path:?}, a file");
    }
}

#[test]
fn where_the_kernel_refuses_bytes_are_copied() {
    for (data_path, stays) in [(DataPath::Map, false), (DataPath::Persistent, true)] {
        assert_eq!(stays_mapped(Arc::new(Picky(ram())), data_path), stays, "{data_path:?}");
    }
}
