//! qcow2 images that are not served, or not consistent: each is refused by its name, and what is read of it never panics.

#[path = "qcow2/common.rs"]
mod common;

use common::{Dir, Ring, create, open, open_as, open_once_closed, pattern, qemu};
use std::os::unix::fs::FileExt;
use std::path::Path;

fn refusal(image: &Path, mode: &str) -> String {
    open_once_closed(image, mode).err().expect("the image is served")
}

/// The refusal of an image that stays in use.
fn in_use(image: &Path) -> String {
    let refusal = open_as(&format!("qcow2:{}", image.display()), "w").err().expect("the image is served");
    assert!(refusal.contains("in use"), "{refusal}");
    refusal
}

fn put(image: &Path, at: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new().write(true).open(image).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn chain_that_does_not_end_or_names_what_is_no_image_is_refused() {
    let dir = Dir::new();
    let image = dir.path("a");
    let over = |name: &str, format: &str| {
        create(&image, "8M", &["-u", "-b", name, "-F", format]);
        refusal(&image, "w")
    };
    assert!(over("a", "qcow2").contains("found an image that is below itself"));
    assert!(over("absent", "raw").contains("absent"));
    assert!(over("absent", "vmdk").contains("found the format \"vmdk\" of the backing file \"absent\""));
    assert!(over("nbd:localhost:1", "raw").contains("not one of the protocol nbd"));
    assert!(over("json:{}", "raw").contains("not one of the protocol json"));
    assert!(over("/dev/null", "raw").contains("found a character device"));
    assert!(over("/", "raw").contains("found a directory"));
    assert!(over(&"x".repeat(1000), "raw").contains("File name too long"));
    // What the base is, is not probed.
    std::fs::write(dir.path("raw"), pattern(0..64, 1)).unwrap();
    create(&image, "8M", &["-u", "-b", "raw", "-F", "qcow2"]);
    assert!(refusal(&image, "w").contains("expected a qcow2 image"));
    create(&image, "8M", &["-u", "-b", "raw", "-F", "raw"]);
    // The format's extension becomes one that is not known.
    put(&image, 112, &[1, 2, 3, 4]);
    let text = refusal(&image, "w");
    assert!(text.contains("without a format"), "{text}");
}

#[test]
fn chain_that_is_too_long_is_refused() {
    let dir = Dir::new();
    create(&dir.path("0"), "8M", &[]);
    for depth in 1..17 {
        let below = format!("{}", depth - 1);
        create(&dir.path(&format!("{depth}")), "8M", &["-u", "-b", &below, "-F", "qcow2"]);
    }
    drop(open(&dir.path("15")));
    assert!(
        refusal(&dir.path("16"), "w").contains("found more images below each other, expected 16 at most")
    );
}

#[test]
fn images_of_a_chain_are_locked_against_those_who_write_them() {
    let dir = Dir::new();
    create(&dir.path("base"), "8M", &[]);
    for name in ["a", "b"] {
        create(&dir.path(name), "8M", &["-b", "base", "-F", "qcow2"]);
    }
    // Two share the base, which nobody may write then.
    let (a, b) = (open(&dir.path("a")), open(&dir.path("b")));
    in_use(&dir.path("base"));
    in_use(&dir.path("a"));
    let qemu_io = |image: &Path| {
        let tool = std::process::Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "write 0 512"])
            .arg(image)
            .output();
        String::from_utf8_lossy(&tool.unwrap().stderr).into_owned()
    };
    for name in ["a", "base"] {
        assert!(qemu_io(&dir.path(name)).contains("lock"), "{name}");
    }
    drop((a, b));
    let _base = open(&dir.path("base"));
    let text = in_use(&dir.path("a"));
    assert!(text.contains("base: in use"), "{text}");
}

#[test]
fn image_whose_tables_are_not_apart_or_not_counted_is_not_written() {
    let dir = Dir::new();
    let image = dir.path("a");
    let l1 = 3 << 16;
    let refused = |at: u64, bytes: &[u8], expected: &str| {
        create(&image, "8M", &[]);
        let disk = open(&image);
        Ring::new(&*disk).write(0, &pattern(0..1, 1)).unwrap();
        drop(disk);
        put(&image, at, bytes);
        let text = refusal(&image, "w");
        assert!(text.contains(expected), "{text}");
    };
    let entry = |cluster: u64| (cluster << 16 | 1 << 63).to_be_bytes();
    refused(l1, &entry(0x1234), "found a table at");
    refused(l1, &(5 << 16 | 512u64 | 1 << 63).to_be_bytes(), "found a table at 328192");
    refused(l1, &entry(1), "found a table in the header, the L1 table or the refcount table");
    refused(l1, &entry(2), "found two tables in one cluster");
    refused(2 << 16, &[0, 0], "found refcount 0 of the table at 0, expected 1");
    refused((2 << 16) + 6, &[0, 0], "found refcount 0 of the table at 196608");
    refused(1 << 16, &[0; 8], "found refcount 0");
}

#[test]
fn data_in_a_table_is_neither_read_nor_written() {
    let dir = Dir::new();
    let image = dir.path("a");
    create(&image, "8M", &[]);
    let disk = open(&image);
    Ring::new(&*disk).write(0, &pattern(0..128, 1)).unwrap();
    drop(disk);
    let bytes = std::fs::read(&image).unwrap();
    let l2 = u64::from_be_bytes(bytes[3 << 16..(3 << 16) + 8].try_into().unwrap()) & !(1 << 63);
    // The header, the refcount table, the refcount block, the L1 table, this L2 table.
    for table in [0, 1 << 16, 2 << 16, 3 << 16, l2] {
        put(&image, l2, &(table | 1 << 63).to_be_bytes());
        let disk = open(&image);
        let mut ring = Ring::new(&*disk);
        // Of an entry of 0 with the bit of a cluster of its own QEMU says too that it is none.
        assert!(table == 0 || ring.read(0, 512).is_err(), "{table}");
        assert!(table == 0 || ring.write(0, &[1; 512]).is_err(), "{table}");
        drop(ring);
        drop(disk);
        assert!(table == 0 || std::fs::read(&image).unwrap()[..1 << 16] == bytes[..1 << 16]);
    }
}

#[test]
fn base_that_shrank_reads_as_zeroes_past_its_end() {
    let dir = Dir::new();
    std::fs::write(dir.path("base"), pattern(0..16_384, 1)).unwrap();
    let image = dir.path("a");
    create(&image, "8M", &["-b", "base", "-F", "raw"]);
    std::fs::OpenOptions::new().write(true).open(dir.path("base")).unwrap().set_len(100 * 512).unwrap();
    let disk = open(&image);
    let mut ring = Ring::new(&*disk);
    let read = ring.read(90, 20 * 512).unwrap();
    assert!(read[..10 * 512] == pattern(90..100, 1) && read[10 * 512..] == vec![0; 10 * 512]);
    ring.write(99, &pattern(99..101, 2)).unwrap();
    assert!(
        ring.read(98, 512).unwrap() == pattern(98..99, 1) && ring.read(101, 512).unwrap() == vec![0; 512]
    );
    drop((ring, disk));
    std::fs::remove_file(dir.path("base")).unwrap();
    assert!(refusal(&image, "w").contains("base: No such file"));
}

#[test]
fn without_space_a_write_fails_and_the_image_stays_consistent() {
    let dir = Dir::new();
    let mounted = dir.path("full");
    std::fs::create_dir(&mounted).unwrap();
    let Ok(tmpfs) = Tmpfs::mount(&mounted) else {
        // Without the privilege to mount there is no file system to fill.
        return;
    };
    for kib in (256..1500).step_by(172) {
        tmpfs.resize(4096);
        let image = mounted.join("a");
        let _ = std::fs::remove_file(&image);
        create(&image, "8M", &["-o", "cluster_size=4096"]);
        tmpfs.resize(kib);
        let disk = open(&image);
        let mut ring = Ring::new(&*disk);
        let mut written = Vec::new();
        let mut failures = 0;
        for at in (0..16_384).step_by(24) {
            match ring.write(at, &pattern(at..at + 8, 3)) {
                Ok(()) => written.push(at),
                Err(error) => {
                    failures += 1;
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                }
            }
        }
        assert!(failures > 0, "{kib} KiB are enough");
        assert!(written.iter().all(|at| ring.read(*at, 4096).unwrap() == pattern(*at..at + 8, 3)));
        drop((ring, disk));
        tmpfs.resize(16_384);
        common::check_killed(&image);
        let content = common::content(&image);
        assert!(
            written.iter().all(|at| content[*at as usize * 512..][..4096] == pattern(*at..at + 8, 3)),
            "{kib}"
        );
    }
}

/// A file system of limited size.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(at: &Path) -> Result<Tmpfs, ()> {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4096k", "none"])
            .arg(at)
            .status();
        if status.is_ok_and(|status| status.success()) { Ok(Tmpfs(at.to_owned())) } else { Err(()) }
    }

    fn resize(&self, kib: u32) {
        let size = format!("remount,size={kib}k");
        let status = std::process::Command::new("mount").args(["-o", &size]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn qemus_bitmaps_are_no_longer_valid_once_the_image_was_written() {
    let dir = Dir::new();
    let image = dir.path("a");
    create(&image, "8M", &[]);
    let path = image.to_str().unwrap();
    qemu(&["qemu-img", "bitmap", "--add", "-f", "qcow2", path, "b0"]);
    let disk = open(&image);
    Ring::new(&*disk).write(7, &pattern(7..8, 1)).unwrap();
    drop(disk);
    common::check_killed(&image);
    assert_eq!(common::content(&image)[7 * 512..8 * 512], pattern(7..8, 1));
}

/// Whether QEMU opens an image.
fn qemu_opens(image: &Path) -> bool {
    let mut tool = std::process::Command::new("qemu-io");
    tool.args(["-r", "-f", "qcow2", "-c", "read 0 512"]).arg(image);
    let output = tool.output().expect("qemu-io, of Debian's package qemu-utils");
    !String::from_utf8_lossy(&output.stderr).contains("can't open")
}

/// The header's fields with the values that QEMU's own tests give them (tests/qemu-iotests 080): what QEMU refuses is refused here.
#[test]
fn headers_that_qemu_refuses_are_refused() {
    let dir = Dir::new();
    let image = dir.path("a");
    let u32s =
        |at: u64, values: &[u32]| values.iter().map(|v| (at, v.to_be_bytes().to_vec())).collect::<Vec<_>>();
    let u64s =
        |at: u64, values: &[u64]| values.iter().map(|v| (at, v.to_be_bytes().to_vec())).collect::<Vec<_>>();
    let fields = [
        u32s(4, &[0, 1, 4, u32::MAX]),                          // version
        u64s(8, &[1, 104, 65_500, u64::MAX, u64::MAX / 2]),     // backing_file_offset
        u32s(20, &[0, 8, 22, 31, 63, u32::MAX]),                // cluster_bits
        u64s(24, &[u64::MAX, u64::MAX / 2, 1 << 62, 64 << 50]), // size
        u32s(32, &[3, u32::MAX]),                               // crypt_method
        u32s(36, &[0, u32::MAX, 0x7fff_ffff, 0x0100_0001]),     // l1_size
        u64s(40, &[1, 0x1234_5678, 0xffff_ffff_ffff_0000, 0x7fff_ffff_ffff_0000]), // l1_table_offset
        u64s(48, &[1, 0x1234_5678, 0xffff_ffff_ffff_0000, 0x7fff_ffff_ffff_0000]), // refcount_table_offset
        u32s(56, &[0, u32::MAX, 0x0002_0001, 0x7fff_ffff]),     // refcount_table_clusters
        u32s(60, &[u32::MAX, 0x7fff_ffff, 0x10_0001]),          // nb_snapshots
        u64s(72, &[1 << 4, 1 << 63, 0xff]),                     // incompatible_features
        u32s(96, &[7, u32::MAX]),                               // refcount_order
        u32s(100, &[0, 103, 0x7fff_ffff, u32::MAX]),            // header_length
    ];
    let length = [(112_u64, [0x1234_5678_u32, 0x7fff_ffff]), (112, [0x1234_5678, u32::MAX])];
    let extensions = length.map(|(at, words)| (at, words.map(u32::to_be_bytes).concat()));
    let mut refused_by_qemu = 0;
    for (at, bytes) in fields.into_iter().flatten().chain(extensions) {
        create(&image, "8M", &[]);
        put(&image, at, &bytes);
        let (theirs, ours) =
            (qemu_opens(&image), ["r", "w"].map(|mode| open_once_closed(&image, mode).is_ok()));
        refused_by_qemu += usize::from(!theirs);
        assert!(theirs || ours == [false; 2], "QEMU refuses {bytes:x?} at {at}, and we serve it: {ours:?}");
    }
    assert!(refused_by_qemu > 30, "{refused_by_qemu}");
}
