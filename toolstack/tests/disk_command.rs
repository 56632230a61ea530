//! `xpv disk` beside QEMU's tools: what one makes the other reads, and both find the same wrong.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::program::{program, run};
use common::{Guard, texts};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A directory in which commands run.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Images {
        Images(tempfile::Builder::new().prefix("xpv").tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn output(&self, mut command: Command, args: &[&str]) -> Output {
        let output = command.args(args).current_dir(self.0.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.code().is_some(), "{args:?}: {output:?}");
        output
    }

    /// Runs `xpv disk`.
    fn disk(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xpv"));
        command.env_remove("RUST_LOG").arg("disk");
        self.output(command, args)
    }

    /// Runs `xpv disk`, which must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.disk(args);
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{args:?}: {stdout}{stderr}");
        stdout
    }

    /// Runs `xpv disk`, which must fail; returns its error.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.disk(args);
        let (stdout, stderr) = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{args:?}: {stderr}");
        stderr.lines().last().unwrap().to_owned()
    }

    fn qemu_img(&self, args: &[&str]) -> String {
        run(program("qemu-img", "qemu-utils").args(args).current_dir(self.0.path()))
    }

    fn qemu_io(&self, image: &str, commands: &[&str]) -> String {
        let mut qemu_io = program("qemu-io", "qemu-utils");
        for command in commands {
            qemu_io.args(["-c", command]);
        }
        let printed = run(qemu_io.arg(image).current_dir(self.0.path()));
        assert!(!printed.contains("failed"), "{commands:?}: {printed}");
        printed
    }

    /// What `check --json` of both prints, and their statuses.
    fn checks(&self, image: &str) -> [(Value, Option<i32>); 2] {
        let json = |output: Output| {
            let (stdout, stderr) = texts(&output);
            let printed = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
            (printed, output.status.code())
        };
        let ours = self.disk(&["check", "--json", "--format", "qcow2", image]);
        let qemu_img = program("qemu-img", "qemu-utils");
        [json(ours), json(self.output(qemu_img, &["check", "--output=json", "-f", "qcow2", image]))]
    }

    /// Both find nothing wrong.
    fn check_clean(&self, image: &str) {
        let [ours, theirs] = self.checks(image);
        assert_eq!(ours, theirs, "{image}");
        assert_eq!(ours.1, Some(0), "{image}: {ours:?}");
    }

    /// `info --json` of both says the same.
    fn check_info(&self, image: &str, format: &str) {
        let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let ours = json(self.ok(&["info", "--json", "--format", format, image]));
        let theirs = json(self.qemu_img(&["info", "--output=json", "-f", format, image]));
        assert_eq!(ours, theirs, "{image}");
        let chain = json(self.ok(&["info", "--json", "--chain", "--format", format, image]));
        let theirs = json(self.qemu_img(&["info", "--output=json", "--backing-chain", "-f", format, image]));
        assert_eq!(chain, theirs, "{image}");
    }
}

#[test]
fn images_that_are_made_are_clean_and_described_as_by_qemu() {
    let images = Images::new();
    fs::create_dir(images.path("below")).unwrap();
    images.ok(&["create", "base.img", "--size", "3M"]);
    assert_eq!(fs::metadata(images.path("base.img")).unwrap().len(), 3 * MIB);
    images.ok(&["create", "empty.qcow2", "-s", "5G"]);
    images.ok(&["create", "huge", "--size", "2T", "--format", "qcow2"]);
    images.ok(&["create", "mid.qcow2", "--backing", "base.img"]);
    images.ok(&["create", "below/top.qcow2", "-b", "../mid.qcow2", "--size", "4M"]);
    images.ok(&["create", "qcow2:named", "-b", "base.img", "-F", "raw"]);
    for (image, bytes) in
        [("empty.qcow2", 5 << 30), ("huge", 2 << 40), ("mid.qcow2", 3 * MIB), ("below/top.qcow2", 4 * MIB)]
    {
        images.check_clean(image);
        images.check_info(image, "qcow2");
        let info: Value =
            serde_json::from_str(&images.ok(&["info", "--json", "-f", "qcow2", image])).unwrap();
        assert_eq!(info["virtual-size"], bytes);
    }
    images.check_info("named", "qcow2");
    images.check_info("base.img", "raw");
    let data = "write -P 7 0 3M";
    images.qemu_io("base.img", &[data]);
    images.qemu_io("below/top.qcow2", &["read -P 7 0 3M", "read -P 0 3M 1M", "write -P 9 64k 1M"]);
    images.check_clean("below/top.qcow2");
    let text = images.ok(&["info", "--chain", "below/top.qcow2"]);
    assert!(
        text.starts_with("image: below/top.qcow2\nfile format: qcow2\nvirtual size: 4 MiB (4194304 bytes)\n")
    );
    assert!(text.contains("backing file: ../mid.qcow2\nbacking file format: qcow2\n"), "{text}");
    assert!(text.contains("\n\nimage: below/../base.img\nfile format: raw\n"), "{text}");
}

#[test]
fn images_that_qemu_makes_are_described_and_checked_as_by_qemu() {
    let images = Images::new();
    let mut data = program("qemu-img", "qemu-utils");
    data.args(["create", "-q", "-f", "raw", "data.img", "6M"]);
    run(data.current_dir(images.0.path()));
    images.qemu_io("data.img", &["write -P 1 0 2M", "write -P 2 3M 300k", "write -P 3 5M 1M"]);
    for options in [
        "compat=0.10",
        "compat=1.1,lazy_refcounts=on",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=4k",
        "preallocation=metadata",
        "compression_type=zstd",
    ] {
        for compress in ["", "-c"] {
            let args =
                ["convert", "-f", "raw", "-O", "qcow2", "-o", options, compress, "data.img", "a.qcow2"];
            let args: Vec<&str> = args.into_iter().filter(|arg| !arg.is_empty()).collect();
            if compress == "-c" && options.starts_with("preallocation") {
                continue;
            }
            images.qemu_img(&args);
            images.check_clean("a.qcow2");
            images.check_info("a.qcow2", "qcow2");
            images.qemu_io("a.qcow2", &["write -P 9 1M 1M", "write -z 0 512k", "discard 5M 512k"]);
            images.check_clean("a.qcow2");
        }
    }
}

/// Numbers of 4 and 8 bytes in a header, and of a table's entries.
struct Bytes(fs::File);

impl Bytes {
    fn open(path: &Path) -> Bytes {
        Bytes(fs::File::options().read(true).write(true).open(path).unwrap())
    }

    fn get(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn set(&self, at: u64, value: u64) {
        self.0.write_all_at(&value.to_be_bytes(), at).unwrap();
    }

    fn set_refcount(&self, cluster: u64, refcount: u16) {
        self.0.write_all_at(&refcount.to_be_bytes(), self.refcounts() + cluster * 2).unwrap();
    }

    fn l1(&self) -> u64 {
        self.get(40)
    }

    fn l2(&self) -> u64 {
        self.get(self.l1()) & 0xffff_ffff_fe00
    }

    /// The first block of refcounts.
    fn refcounts(&self) -> u64 {
        self.get(self.get(48))
    }
}

/// What is wrong, the status for it, whether QEMU counts the same, and how it is planted.
type Fault = (&'static str, i32, bool, fn(&Bytes));

#[test]
fn what_is_wrong_in_an_image_is_found_as_by_qemu() {
    const COPIED: u64 = 1 << 63;
    /// The cluster of the guest's first one.
    fn first(bytes: &Bytes) -> u64 {
        (bytes.get(bytes.l2()) & 0xffff_ffff_fe00) >> 16
    }
    let faults: &[Fault] = &[
        ("a cluster without a refcount", 2, true, |b| b.set_refcount(first(b), 0)),
        ("a refcount of two", 2, true, |b| b.set_refcount(first(b) + 1, 2)),
        ("a cluster that nothing refers to", 3, true, |b| b.set(b.l2() + 8, 0)),
        ("two entries for a cluster", 2, true, |b| b.set(b.l2() + 8, b.get(b.l2()))),
        ("an entry of a flag alone", 3, true, |b| b.set(b.l2() + 8, COPIED)),
        ("an entry that names the L2 table", 2, true, |b| b.set(b.l2() + 8, b.l2() | COPIED)),
        ("an entry that names the L1 table", 2, true, |b| b.set(b.l2() + 8, b.l1() | COPIED)),
        ("an entry beyond the file", 2, false, |b| b.set(b.l2() + 8, 1 << 40 | COPIED)),
        ("an entry that is not aligned", 2, false, |b| b.set(b.l2() + 8, b.get(b.l2() + 8) + 512)),
        ("an L1 entry beyond the file", 2, false, |b| b.set(b.l1(), 1 << 40 | COPIED)),
        ("an L1 entry that is not aligned", 2, false, |b| b.set(b.l1(), b.get(b.l1()) + 512)),
        ("an L1 entry that names the L1 table", 2, true, |b| b.set(b.l1(), b.l1() | COPIED)),
        ("an entry without its flag", 2, true, |b| b.set(b.l2(), b.get(b.l2()) & !COPIED)),
        ("an L1 entry without its flag", 2, true, |b| b.set(b.l1(), b.get(b.l1()) & !COPIED)),
        ("a refcount block beyond the file", 2, true, |b| b.set(b.get(48), 1 << 40)),
        ("a refcount block that is not aligned", 2, false, |b| b.set(b.get(48), b.refcounts() + 512)),
        ("a refcount block that is the L1 table", 2, false, |b| b.set(b.get(48), b.l1())),
        ("a second refcount block at the same place", 2, false, |b| b.set(b.get(48) + 8, b.refcounts())),
        ("reserved bits of an L2 entry", 2, true, |b| b.set(b.l2(), b.get(b.l2()) | 1 << 58)),
        ("reserved bits of an L1 entry", 2, true, |b| b.set(b.l1(), b.get(b.l1()) | 1 << 57)),
    ];
    let images = Images::new();
    for (what, status, same, plant) in faults {
        images.qemu_img(&["create", "-q", "-f", "qcow2", "a.qcow2", "1G"]);
        images.qemu_io("a.qcow2", &["write -P 1 0 1M"]);
        plant(&Bytes::open(&images.path("a.qcow2")));
        let [ours, theirs] = images.checks("a.qcow2");
        println!("{what}:\n  {ours:?}\n  {theirs:?}");
        assert_eq!(ours.1, Some(*status), "{what}");
        match same {
            true => assert_eq!(ours, theirs, "{what}"),
            // They count what is wrong in an entry that is not believed, or stop there.
            false => assert!(theirs.1 == ours.1 || theirs.1 == Some(1), "{what}"),
        }
    }
}

#[test]
fn image_that_is_resized_reads_as_before_and_as_zeroes_beyond() {
    let images = Images::new();
    images.ok(&["create", "base.img", "--size", "4M"]);
    images.qemu_io("base.img", &["write -P 7 0 4M"]);
    images.ok(&["create", "alone.qcow2", "--size", "4M"]);
    for (image, behind) in [("alone.qcow2", 3), ("over.qcow2", 7)] {
        if image == "over.qcow2" {
            images.ok(&["create", image, "--backing", "base.img"]);
        } else {
            images.qemu_io(image, &["write -P 3 0 4M"]);
        }
        let read = |at: &str| format!("read -P {behind} {at}");
        let error = images.fails(&["resize", image, "65k"]);
        assert!(
            error.contains("SIZE: bytes: found \"66560\", expected 4194304 at least, or --shrink"),
            "{error}"
        );
        images.ok(&["resize", image, "65k", "--shrink"]);
        images.check_clean(image);
        images.qemu_io(image, &[&read("0 65k")]);
        images.ok(&["resize", image, "10G"]);
        images.check_clean(image);
        images.qemu_io(image, &[&read("0 65k"), "read -P 0 65k 8M", "write -P 5 9G 1M"]);
        images.check_clean(image);
    }
    // A part of a cluster that has data.
    images.ok(&["resize", "alone.qcow2", "66k", "--shrink"]);
    images.qemu_io("alone.qcow2", &["write -P 8 64k 2k"]);
    images.qemu_img(&["resize", "--shrink", "-f", "qcow2", "alone.qcow2", "65k"]);
    images.ok(&["resize", "alone.qcow2", "1M"]);
    images.qemu_io("alone.qcow2", &["read -P 8 64k 1k", "read -P 0 65k 100k"]);
    images.check_clean("alone.qcow2");
    // Of version 2, which has no clusters of zeroes.
    images.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "compat=0.10",
        "-b",
        "base.img",
        "-F",
        "raw",
        "old.qcow2",
        "65k",
    ]);
    let error = images.fails(&["resize", "old.qcow2", "2M"]);
    assert!(error.contains("old.qcow2: resizing the image: found version 2, expected 3"), "{error}");
    images.qemu_img(&["amend", "-f", "qcow2", "-o", "compat=1.1", "old.qcow2"]);
    images.ok(&["resize", "old.qcow2", "2M"]);
    images.qemu_io("old.qcow2", &["read -P 7 0 65k", "read -P 0 65k 1983k"]);
    images.check_clean("old.qcow2");
    images.ok(&["resize", "base.img", "5M"]);
    images.qemu_io("base.img", &["read -P 7 0 4M", "read -P 0 4M 1M"]);
}

/// A program of QEMU's that has an image open for writing.
fn writer(images: &Images, image: &str) -> Guard {
    let mut qemu_io = program("qemu-io", "qemu-utils");
    qemu_io.arg(image).current_dir(images.0.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = Guard(qemu_io.spawn().unwrap());
    let commands = b"write -P 1 0 4k\nflush\n";
    writer.0.stdin.as_mut().unwrap().write_all(commands).unwrap();
    let mut lines = BufReader::new(writer.0.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("wrote 4096/4096")));
    writer
}

#[test]
fn image_that_somebody_uses_is_shown_and_neither_checked_nor_resized_nor_a_base() {
    let images = Images::new();
    images.ok(&["create", "base.qcow2", "--size", "1M"]);
    images.ok(&["create", "top.qcow2", "--backing", "base.qcow2"]);
    {
        let _writer = writer(&images, "base.qcow2");
        images.ok(&["info", "--chain", "top.qcow2"]);
        for args in [
            &["check", "base.qcow2"][..],
            &["resize", "base.qcow2", "2M"],
            &["resize", "top.qcow2", "2M"],
            &["create", "other.qcow2", "--backing", "base.qcow2"],
        ] {
            let error = images.fails(args);
            assert!(error.contains("base.qcow2") && error.contains("in use"), "{args:?}: {error}");
        }
    }
    images.ok(&["check", "base.qcow2"]);
    // Who reads the base of an overlay may go on.
    let _writer = writer(&images, "top.qcow2");
    let error = images.fails(&["resize", "base.qcow2", "2M"]);
    assert!(error.contains("in use"), "{error}");
    images.ok(&["check", "base.qcow2"]);
    images.ok(&["create", "other.qcow2", "--backing", "base.qcow2"]);
}

#[test]
fn what_cannot_be_done_is_refused_by_what_was_found_and_expected_and_leaves_nothing() {
    let images = Images::new();
    images.ok(&["create", "a.img", "--size", "1M"]);
    images.ok(&["create", "a.qcow2", "--size", "1M"]);
    let long = format!("{}a.img", "./".repeat(600));
    let loops = ["loop.qcow2", "--backing", "a.qcow2"];
    images.ok(&[&["create"], &loops[..]].concat());
    images.qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "loop.qcow2", "a.qcow2"]);
    for (args, expected) in [
        (&["create", "a.img", "--size", "1M"][..], "a.img: making the image: File exists"),
        (&["create", "b.qcow2", "--backing", "none.img"], "--backing: none.img: No such file"),
        (&["create", "b.img", "-f", "raw", "-b", "a.img"], "PATH: format: found \"raw\", expected qcow2"),
        (&["create", "vhd:b", "-s", "1M"], "PATH: image: found \"vhd:b\", expected a path, with raw: or"),
        (&["create", "b.qcow2", "-b", &long], "expected at most 1023 bytes"),
        (
            &["create", "b.qcow2", "-b", "a.qcow2"],
            "found an image that is below itself, expected a chain that ends",
        ),
        (&["info", "--chain", "a.qcow2"], "expected at most 64 files"),
        (&["info", "-f", "qcow2", "a.img"], "a.img: qcow2: found 0x00000000, expected a qcow2 image"),
        (&["info", "none.img"], "none.img: reading the image: No such file"),
        (&["info", "/dev/null"], "/dev/null: neither a file nor a block device"),
    ] {
        let error = images.fails(args);
        assert!(error.contains(expected), "{args:?}: {error}");
        assert!(!images.path("b.qcow2").exists() && !images.path("b.img").exists(), "{args:?}");
    }
    let names: Vec<_> = fs::read_dir(images.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for args in [&["create", "b.img"][..], &["create", "b.img", "-s", "1000"], &["info", "a", "-f", "qed"]] {
        let output = images.disk(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    images.qemu_img(&["create", "-q", "-f", "qcow2", "bitmaps.qcow2", "1M"]);
    images.qemu_img(&["bitmap", "--add", "-f", "qcow2", "bitmaps.qcow2", "b"]);
    let error = images.fails(&["check", "bitmaps.qcow2"]);
    assert!(error.contains("found bitmaps, expected none"), "{error}");
    let raw = images.disk(&["check", "a.img"]);
    assert_eq!(raw.status.code(), Some(63), "{raw:?}");
    // A name that says nothing: no header is believed.
    fs::rename(images.path("loop.qcow2"), images.path("disk")).unwrap();
    let shown = images.disk(&["info", "disk"]);
    let (stdout, stderr) = texts(&shown);
    assert!(stdout.contains("file format: raw\n"), "{stdout}");
    assert!(stderr.contains("warning: disk: read as raw, and begins with a qcow2 header: qcow2:disk says"));
}
