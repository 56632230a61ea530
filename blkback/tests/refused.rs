//! What a disk's engine needs and does not get is refused before the frontend is told that it is connected.
#![allow(unsafe_code)] // A seccomp filter is installed by prctl.

use std::io;
use std::sync::Arc;

use blkback::engine::RamDisk;
use blkback::{Disk, DiskInfo, Engine, VbdDriver};
use ring_abi::DomId;
use testkit::Machine;
use testkit::block::{Backend, GUEST, XVDA, options, try_open};
use xenbus::XenbusState;

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
    machine.wait_for_state(&device.back_path(), XenbusState::Closing);
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

/// Lets `io_uring_setup` fail with EPERM, as Docker's and systemd's filters do, for this thread and those that it starts.
fn refuse_io_uring() {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the system call is the first word.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, and the calls change nothing of this process's memory.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(installed, "seccomp: {}", io::Error::last_os_error());
}

#[test]
fn image_without_io_uring_is_refused_with_what_to_do() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let path = image.path().to_str().unwrap().to_owned();
    let filtered = std::thread::spawn(move || {
        refuse_io_uring();
        let machine = Machine::new();
        let _back = Backend::start(&machine);
        let words =
            ["1 ", "disk engine: io_uring_setup: Operation not permitted", "kernel.io_uring_disabled"];
        assert_refused(&machine, &path, &words);
    });
    filtered.join().unwrap();
}
