//! Images that are committed and streamed while guests use them: what the guest reads stays as it is, and QEMU finds the images in order.

#[path = "qcow2/common.rs"]
mod common;
#[path = "qcow2/jobs.rs"]
mod jobs;
#[path = "qcow2/own.rs"]
mod own;

use blkback::Disk;
use blkback::engine::format::ImageControl;
use common::{Dir, Ring, check, content, create, open, pattern, qemu};
use jobs::commit;
use own::{Own, RINGS, SECTORS};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The images of a test: `base`, `middle` over it if there are `options` for that, and `image`.
struct Images<'o> {
    base: &'o [&'o str],
    middle: Option<&'o [&'o str]>,
    image: &'o [&'o str],
}

/// Makes the images; returns what the disk holds.
fn make(dir: &Dir, images: &Images<'_>) -> Vec<u8> {
    let mut bytes = pattern(0..SECTORS, 1 << 19);
    // Sparse in the midst.
    bytes[1 << 20..3 << 20].fill(0);
    std::fs::write(dir.path("raw"), &bytes).unwrap();
    let at = |name: &str| dir.path(name).to_str().unwrap().to_owned();
    qemu(&[&["qemu-img", "convert"], images.base, &["-f", "raw", &at("raw"), &at("base")]].concat());
    let base_format = if images.base.contains(&"qcow2") { "qcow2" } else { "raw" };
    let mut below = ("base", base_format);
    if let Some(options) = images.middle {
        create(&dir.path("middle"), "8M", &[options, &["-b", "base", "-F", base_format]].concat());
        let write = "write -P 9 4M 1M";
        qemu(&["qemu-io", "-f", "qcow2", "-c", write, "-c", "write -z 6M 1M", &at("middle")]);
        bytes[4 << 20..5 << 20].fill(9);
        bytes[6 << 20..7 << 20].fill(0);
        below = ("middle", "qcow2");
    }
    create(&dir.path("image"), "8M", &[images.image, &["-b", below.0, "-F", below.1]].concat());
    bytes
}

/// Random operations of several rings on a disk, while `jobs` are done with its image; then all reads as it was written, by us and by QEMU.
fn amid_operations(name: &str, images: &Images<'_>, seed: u64, jobs: impl FnOnce(&ImageControl)) -> Dir {
    let dir = Dir::in_memory();
    let base = make(&dir, images);
    let image = dir.path("image");
    let disk = open(&image);
    disk.set_detect_zeroes(seed.is_multiple_of(2));
    let (disk_ref, stop) = (&*disk as &dyn Disk, AtomicBool::new(false));
    let model = std::thread::scope(|scope| {
        let run = |number| {
            let (stop, base) = (&stop, &base);
            scope.spawn(move || {
                let model = vec![Some(u64::MAX); (SECTORS / 8) as usize];
                let random = SmallRng::seed_from_u64(seed * RINGS + number);
                let mut own = Own { ring: Ring::new(disk_ref), number, model, random };
                let mut steps = 0;
                while steps < 200 || !stop.load(Ordering::Relaxed) {
                    own.step(base, true);
                    steps += 1;
                }
                (0..SECTORS / 8).filter(|part| part % RINGS == number).for_each(|part| own.check(part, base));
                own.ring.flush().unwrap();
                (0..SECTORS / 8).map(|part| own.expected(part, base)).collect::<Vec<_>>()
            })
        };
        let rings: Vec<_> = (0..RINGS).map(run).collect();
        let stopped = testkit::StopOnDrop(&stop);
        jobs(&disk.image().unwrap());
        drop(stopped);
        rings.into_iter().map(|ring| ring.join().unwrap()).collect::<Vec<_>>()
    });
    drop(disk);
    check(&image);
    let content = content(&image);
    for part in 0..(SECTORS / 8) as usize {
        if let Some(expected) = &model[part % RINGS as usize][part] {
            assert!(content[part * 4096..][..4096] == *expected, "{name}, seed {seed}: part {part}");
        }
    }
    dir
}

const RAW: &[&str] = &["-O", "raw"];
const ZLIB: &[&str] = &["-c", "-O", "qcow2"];
const ZSTD: &[&str] = &["-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=32k"];
const CASES: [(&str, Images<'static>); 5] = [
    ("raw", Images { base: RAW, middle: None, image: &[] }),
    ("zlib", Images { base: ZLIB, middle: None, image: &["-o", "cluster_size=4k"] }),
    ("three", Images { base: ZSTD, middle: Some(&["-o", "cluster_size=16k"]), image: &[] }),
    (
        "large",
        Images { base: RAW, middle: Some(&["-o", "cluster_size=256k"]), image: &["-o", "cluster_size=8k"] },
    ),
    ("v2", Images { base: ZLIB, middle: Some(&["-o", "compat=0.10"]), image: &["-o", "compat=0.10"] }),
];

#[test]
fn commits_amid_the_operations_of_several_rings_lose_nothing() {
    for (seed, (name, images)) in CASES.into_iter().enumerate() {
        let dir = amid_operations(name, &images, seed as u64 + 1, |control| {
            for _ in 0..3 {
                let progress = Arc::default();
                commit(control, &progress).unwrap();
                assert_eq!((progress.done(), progress.total()), (SECTORS * 512, SECTORS * 512));
            }
        });
        if images.middle.is_some() {
            check(&dir.path("middle"));
        }
    }
}

#[test]
fn stream_amid_the_operations_of_several_rings_leaves_the_backing_and_loses_nothing() {
    for (seed, (name, images)) in CASES.into_iter().enumerate() {
        let dir = amid_operations(name, &images, seed as u64 + 1, |control| {
            control.stream(Arc::default()).unwrap();
            assert_eq!(control.info().layers.len(), 1, "{name}");
            assert!(control.stream(Arc::default()).is_err(), "{name}: nothing is below");
        });
        let image = dir.path("image");
        let info = qemu(&["qemu-img", "info", image.to_str().unwrap()]);
        assert!(!info.contains("backing"), "{name}: {info}");
    }
}
