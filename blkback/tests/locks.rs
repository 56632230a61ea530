//! Who may open an image at the same time: other disks, QEMU, loop devices, mounts, processes that write to it; by any name.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blkback::Disk;
use blkback::engine::{Access, FileDisk, Mode, OpenError};

/// A directory with an image.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Images {
        let images = Images(tempfile::tempdir().unwrap());
        std::fs::write(images.path("a.img"), vec![0; 1 << 20]).unwrap();
        images
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str, mode: Mode) -> Result<FileDisk, OpenError> {
        FileDisk::open(&self.path(name), mode, true)
    }
}

/// Waits until a condition holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn image_is_one_image_under_each_of_its_names() {
    let images = Images::new();
    std::os::unix::fs::symlink(images.path("a.img"), images.path("symlink")).unwrap();
    std::fs::hard_link(images.path("a.img"), images.path("hard")).unwrap();
    let disk = images.open("symlink", Mode::Write).unwrap();
    for name in ["a.img", "symlink", "hard"] {
        for mode in [Mode::Write, Mode::Read, Mode::WriteShared] {
            assert!(matches!(images.open(name, mode), Err(OpenError::InUse { .. })), "{name} {mode:?}");
        }
    }
    drop(disk);
    images.open("hard", Mode::Write).unwrap();
}

/// QEMU with the image open, until this is dropped.
struct Qemu(Child);

impl Qemu {
    /// `qemu-nbd` of Debian's package qemu-utils.
    fn start(images: &Images, options: &[&str]) -> Qemu {
        let socket = images.path("nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-f", "raw"]).args(options).arg("-k").arg(&socket).arg(images.path("a.img"));
        let child = command.stdout(Stdio::null()).spawn().expect("qemu-nbd (apt-get install qemu-utils)");
        let qemu = Qemu(child);
        // It listens before it opens the image, and greets a client once it has it with all locks.
        let greets =
            || UnixStream::connect(&socket).is_ok_and(|mut client| client.read_exact(&mut [0; 16]).is_ok());
        eventually("qemu-nbd serves", greets);
        qemu
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a program of QEMU may open an image.
fn qemu_opens(program: &str, args: &[&str], path: &Path) -> bool {
    let output = Command::new(program).args(args).arg(path).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e} (apt-get install qemu-utils)"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || error.contains("lock"), "{output:?}");
    output.status.success()
}

#[test]
fn image_that_qemu_has_is_refused_and_one_that_it_only_reads_may_be_read() {
    let images = Images::new();
    let is_refused = |mode| matches!(images.open("a.img", mode), Err(OpenError::InUse { .. }));
    let qemu = Qemu::start(&images, &[]);
    assert!(is_refused(Mode::Write) && is_refused(Mode::Read));
    drop(qemu);
    std::fs::remove_file(images.path("nbd.sock")).unwrap();
    let qemu = Qemu::start(&images, &["-r"]);
    images.open("a.img", Mode::Read).unwrap();
    assert!(is_refused(Mode::Write));
    drop(qemu);
    images.open("a.img", Mode::Write).unwrap();
}

#[test]
fn image_of_a_disk_is_refused_by_qemu_as_another_qemus_would_be() {
    let images = Images::new();
    let path = images.path("a.img");
    let writes = || qemu_opens("qemu-io", &["-f", "raw", "-c", "write 0 512"], &path);
    let looks = || qemu_opens("qemu-img", &["info", "-U", "-f", "raw"], &path);
    let writer = images.open("a.img", Mode::Write).unwrap();
    assert!(!writes() && looks());
    drop(writer);
    let reader = images.open("a.img", Mode::Read).unwrap();
    assert!(!writes() && looks());
    drop(reader);
    let shared = images.open("a.img", Mode::WriteShared).unwrap();
    assert!(writes());
    drop(shared);
    assert!(writes() && looks());
}

#[test]
fn image_that_another_process_writes_to_is_refused_by_its_name() {
    let images = Images::new();
    let mut writer = Command::new("sh")
        .args(["-c", "exec 3>>\"$0\" && exec cat"])
        .arg(images.path("a.img"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let comm = format!("/proc/{}/comm", writer.id());
    eventually("cat runs", || std::fs::read_to_string(&comm).is_ok_and(|comm| comm == "cat\n"));
    let error = images.open("a.img", Mode::Write).unwrap_err().to_string();
    assert!(error.contains(&format!("in use by this domain: process {} (cat)", writer.id())), "{error}");
    images.open("a.img", Mode::WriteShared).unwrap();
    drop(writer.stdin.take());
    writer.wait().unwrap();
    images.open("a.img", Mode::Write).unwrap();
}

/// A loop device on a file, until this is dropped. Making one takes root.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Loop> {
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let output = Command::new("/usr/sbin/losetup").args(["-f", "--show"]).arg(file).output().ok()?;
        let made =
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim_end().to_owned());
        if made.is_none() {
            // A container's root may make none: tests/xen has the same in a dom0.
            eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        }
        made.map(Loop)
    }

    fn open(&self, mode: Mode) -> Result<FileDisk, OpenError> {
        FileDisk::open(Path::new(&self.0), mode, true)
    }

    /// Opens a device that this process has just closed: another test's child has a copy of the descriptor, and with it the
    /// claim of the device, until it executes its program.
    fn reopen(&self) -> FileDisk {
        let mut disk = None;
        eventually("the device is free", || {
            disk = self.open(Mode::Write).ok();
            disk.is_some()
        });
        disk.unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn loop_device_and_its_file_are_one_image() {
    let images = Images::new();
    let Some(device) = Loop::new(&images.path("a.img")) else { return };
    let error = images.open("a.img", Mode::Write).unwrap_err().to_string();
    assert!(error.contains(&format!("in use by this domain: loop device {}", device.0)), "{error}");
    let of_file = std::fs::metadata(&device.0).unwrap();
    let number = std::os::unix::fs::MetadataExt::rdev(&of_file);
    let own_loop = Some((nix::sys::stat::major(number), nix::sys::stat::minor(number)));
    let access = Access { mode: Mode::Write, direct: true, user: None, own_loop, server: None };
    let disk =
        FileDisk::open_as(&images.path("a.img"), access).expect("the hotplug script has made it for us");
    for mode in [Mode::Write, Mode::Read] {
        let error = device.open(mode).unwrap_err().to_string();
        assert!(error.contains(&device.0) && error.contains("in use by another disk"), "{error}");
    }
    drop(disk);
    let disk = device.reopen();
    assert!(images.open("a.img", Mode::Read).is_err() && device.open(Mode::Write).is_err());
    drop(disk);
}

#[test]
fn mounted_device_is_refused_unless_it_is_shared_or_both_only_read() {
    let images = Images::new();
    let mkfs = Command::new("/usr/sbin/mkfs.ext4").arg("-q").arg(images.path("a.img")).status();
    let Some(device) = Loop::new(&images.path("a.img")) else { return };
    assert!(mkfs.unwrap().success());
    std::fs::create_dir(images.path("mnt")).unwrap();
    for (options, readable) in [("rw", false), ("ro", true)] {
        let mut mount = Command::new("mount");
        if !mount.args(["-o", options, &device.0]).arg(images.path("mnt")).status().unwrap().success() {
            return eprintln!("skipped: a container's root may mount nothing");
        }
        let writer = device.open(Mode::Write).map(drop);
        let reader = device.open(Mode::Read).map(drop);
        let shared = device.open(Mode::WriteShared).map(drop);
        let file = images.open("a.img", Mode::Write).map(drop);
        assert!(Command::new("umount").arg(images.path("mnt")).status().unwrap().success());
        for refused in [writer, file] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("mounted on /") && error.contains("/mnt"), "{options}: {error}");
        }
        assert_eq!((reader.is_ok(), shared.is_ok()), (readable, true), "{options}");
    }
    device.reopen();
}

#[test]
fn device_of_an_earlier_process_waits_for_its_operations_and_others_do_not() {
    let images = Images::new();
    let open = |mode, user| {
        let access = Access { mode, direct: true, user: Some(user), own_loop: None, server: None };
        FileDisk::open_as(&images.path("a.img"), access)
    };
    for mode in [Mode::Read, Mode::WriteShared] {
        let earlier = open(mode, 7).unwrap();
        let other = open(mode, 8).unwrap();
        assert!(matches!(open(mode, 7), Err(OpenError::Draining { .. })), "{mode:?}");
        drop(earlier);
        open(mode, 7).unwrap();
        drop(other);
    }
}

#[test]
fn lock_is_held_by_the_open_file_that_does_the_operations() {
    let images = Images::new();
    let access = Access { mode: Mode::Read, direct: true, user: Some(7), own_loop: None, server: None };
    let earlier = FileDisk::open_as(&images.path("a.img"), access).unwrap();
    // An engine has the file, too; a killed process's locks go with the last user of it.
    let engine = earlier.engine(4).unwrap();
    let holders = std::fs::read_to_string("/proc/locks").unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(images.path("a.img")).unwrap());
    let of_file = holders.lines().filter(|line| line.contains(&format!(":{inode} ")));
    assert!(of_file.filter(|line| line.contains("OFDLCK")).count() >= 2, "{holders}");
    drop((earlier, engine));
}
