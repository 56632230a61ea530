//! Images as xl's users have them: of odd sizes, shared, in drives, in use by other programs.

mod common;

use common::Machine;
use serde_json::Value;
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;

fn disks(machine: &Machine, guest: &str) -> Value {
    serde_json::from_str(&machine.ok(["block-list", "--json", guest])).unwrap()
}

#[test]
fn image_of_an_odd_size_is_a_disk_of_its_whole_sectors() {
    let machine = Machine::new();
    let image = machine.image("odd.img", MIB + 1);
    machine.create("web", &format!("disk=['{},,xvda']", image.display()));
    assert_eq!(disks(&machine, "web")[0]["sectors"], MIB / 512);
    assert!(
        machine.log().contains("1048577 bytes are no multiple of 512: the last 1 are not part of the disk")
    );
}

#[test]
fn cdrom_is_read_only_and_a_drive_without_a_medium_is_empty() {
    let machine = Machine::new();
    let image = machine.image("a.iso", MIB);
    machine.create("web", &format!("disk=['{},,hdc,rw,cdrom', ',hdd:cdrom,r']", image.display()));
    let list = disks(&machine, "web");
    assert_eq!((&list[0]["mode"], &list[0]["sectors"]), (&"r".into(), &(MIB / 512).into()));
    assert_eq!((&list[1]["state"], &list[1]["sectors"]), (&4.into(), &0.into()));
    let info = |vdev: u32| {
        let path = format!("/local/domain/0/backend/vbd/1/{vdev}/info");
        machine.nodes().into_iter().find(|(node, _)| *node == path).map(|(_, value)| value)
    };
    // CDROM, REMOVABLE and READONLY.
    assert_eq!((info(22 << 8), info(22 << 8 | 64)), (Some("7".into()), Some("7".into())));
    let mut drive = Nbd::connect(&machine.dir().join("web/hdd.nbd")).unwrap();
    assert_eq!(drive.size(), 0);
    assert!(drive.read(0).is_err());
}

#[test]
fn image_is_shared_by_writers_that_say_so_and_by_no_other() {
    let machine = Machine::new();
    let image = machine.image("a.img", MIB);
    let disk = |access: &str| format!("disk=['{},,xvda,{access}']", image.display());
    machine.create("a", &disk("w!"));
    machine.create("b", &disk("w!"));
    let connect = |guest: &str| Nbd::connect(&machine.dir().join(guest).join("xvda.nbd")).unwrap();
    let mut a = connect("a");
    a.send_write(0, &[7; BLOCK]).unwrap();
    a.written().unwrap();
    assert_eq!(connect("b").read(0).unwrap(), [7; BLOCK]);
    for access in ["w", "r"] {
        let cfg = machine.file("c.cfg", &format!("name='c'\n{}", disk(access)));
        let error = machine.fails(["create".as_ref(), cfg.as_os_str()]);
        assert!(error.contains("in use by disk xvda of domain 1"), "{access}: {error}");
    }
}

#[test]
fn disks_are_served_without_io_uring_and_one_warning_names_the_setting() {
    let run = || {
        testkit::refuse_io_uring();
        let machine = Machine::new();
        let [a, b] = ["a", "b"].map(|name| machine.image(&format!("{name}.img"), MIB));
        machine.create("web", &format!("disk=['{},,xvda', '{},,xvdb']", a.display(), b.display()));
        for dev in ["xvda", "xvdb"] {
            let mut disk = Nbd::connect(&machine.dir().join(format!("web/{dev}.nbd"))).unwrap();
            disk.send_write(3, &[7; BLOCK]).unwrap();
            disk.written().unwrap();
            assert_eq!(disk.read(3).unwrap(), [7; BLOCK]);
        }
        let log = machine.log();
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("kernel.io_uring_disabled")).collect();
        assert_eq!(warnings.len(), 1, "{log}");
        assert!(warnings[0].contains("WARN") && warnings[0].contains("disks are served by threads"), "{log}");
    };
    // Processes inherit what the thread that starts them may not do.
    std::thread::spawn(run).join().unwrap();
}

/// A file system in memory, until this is dropped. Only root may mount one.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(path: std::path::PathBuf, options: &str) -> Option<Tmpfs> {
        std::fs::create_dir(&path).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path);
        mount.status().unwrap().success().then(|| Tmpfs(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn full_file_system_fails_writes_that_are_counted_and_logged_once_until_there_is_space() {
    let machine = Machine::new();
    let Some(tmpfs) = Tmpfs::mount(machine.path("full"), "size=512k") else {
        return eprintln!("skipped: no tmpfs can be mounted");
    };
    let image = machine.image("full/sparse.img", 4 * MIB);
    machine.create("web", &format!("disk=['{},,xvda']", image.display()));
    let mut disk = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    let mut write = |block: u64| {
        disk.send_write(block, &[7; BLOCK]).unwrap();
        disk.written().is_ok()
    };
    let blocks = 4 * MIB / BLOCK as u64;
    let failed = (0..blocks).filter(|block| !write(*block)).count() as u64;
    assert!(failed > 0 && failed < blocks, "{failed} of {blocks}");
    let errors = &disks(&machine, "web")[0]["stats"]["operations"]["write"]["errors"];
    assert_eq!(errors["no_space"], failed, "{errors}");
    let log = machine.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("failed request")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("No space left on device") && lines[0].contains("sparse.img"), "{lines:?}");
    let mut remount = std::process::Command::new("mount");
    remount.args(["-o", "remount,size=8M"]).arg(&tmpfs.0);
    assert!(remount.status().unwrap().success());
    assert!((0..blocks).all(write), "there is space again");
    machine.ok(["destroy", "web"]);
}

#[test]
fn image_that_another_program_writes_to_is_refused_by_the_programs_name() {
    let machine = Machine::new();
    let image = machine.image("a.img", MIB);
    machine.create("web", "");
    let mut writer = std::process::Command::new("sh")
        .args(["-c", "exec 3>>\"$0\" && echo open && exec cat"])
        .arg(&image)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = writer.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    let disk = format!("{},,xvdb", image.display());
    let error = machine.fails(["block-attach", "web", &disk]);
    assert!(error.contains(&format!("in use by this domain: process {} (", writer.id())), "{error}");
    machine.ok(["block-attach", "web", &format!("{disk},w!")]);
    drop(writer.stdin.take());
    writer.wait().unwrap();
}
