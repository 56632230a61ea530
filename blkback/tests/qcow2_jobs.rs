//! Images that are committed and streamed while guests use them: what the guest reads stays as it is, and QEMU finds the images in order.

#[path = "qcow2/common.rs"]
mod common;
#[path = "qcow2/jobs.rs"]
mod jobs;
#[path = "qcow2/own.rs"]
mod own;

use blkback::Disk;
use blkback::engine::format::{ImageControl, OpenChain, Progress, Qcow2Disk};
use blkback::engine::{Access, BaseCache, Mode, OpenError};
use common::{Dir, Ring, check, content, create, open, open_as, pattern, qemu};
use jobs::{commit, reopen_below};
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
            for _ in 0..2 {
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

#[test]
fn commit_makes_the_image_below_as_long_as_the_disk() {
    let cases: [(&str, &[&str], &[&str]); 3] = [
        ("raw", &["-O", "raw"], &[]),
        ("qcow2", &["-O", "qcow2"], &["-o", "cluster_size=4k"]),
        ("qcow2", &["-O", "qcow2", "-o", "cluster_size=512"], &[]),
    ];
    for (format, base, options) in cases {
        let dir = Dir::in_memory();
        let at = |name: &str| dir.path(name).to_str().unwrap().to_owned();
        // Not of whole clusters, and not of whole sectors.
        std::fs::write(dir.path("raw"), [pattern(0..2001, 7), vec![1; 100]].concat()).unwrap();
        qemu(&[&["qemu-img", "convert", "-f", "raw"], base, &[&at("raw"), &at("base")]].concat());
        if format == "raw" {
            std::fs::copy(dir.path("raw"), dir.path("base")).unwrap();
        }
        create(&dir.path("image"), "8M", &[options, &["-b", "base", "-F", format]].concat());
        let disk = open(&dir.path("image"));
        let mut ring = Ring::new(&*disk);
        ring.write(2000, &pattern(2000..2001, 1)).unwrap();
        ring.write(16_000, &pattern(16_000..16_010, 1)).unwrap();
        ring.discard(0, 128 << 10).unwrap();
        let before = ring.read_all(&*disk);
        commit(&disk.image().unwrap(), &Arc::default()).unwrap();
        assert!(ring.read_all(&*disk) == before, "{format} {options:?}");
        drop((ring, disk));
        check(&dir.path("image"));
        let compared = ["qemu-img", "compare", "-f", "qcow2", "-F", format, &at("image"), &at("base")];
        assert!(qemu(&compared).contains("Images are identical"), "{format} {options:?}");
        // Nothing is left of its own.
        let map = qemu(&["qemu-img", "map", "-f", "qcow2", "--output=json", &at("image")]);
        assert!(!map.contains("\"depth\": 0") || format == "raw", "{map}");
        assert_eq!(before.len(), 8 << 20);
    }
}

#[test]
fn change_that_is_not_possible_or_cancelled_leaves_all_as_it_was() {
    let dir = Dir::in_memory();
    let bytes = make(&dir, &CASES[2].1);
    let disk = open(&dir.path("image"));
    let (control, mut ring) = (disk.image().unwrap(), Ring::new(&*disk));
    let refused = control.commit(Arc::default()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "the image below is open for reading");
    let cancelled: Arc<Progress> = Arc::default();
    cancelled.cancel();
    for outcome in [control.stream(cancelled.clone()), commit(&control, &cancelled)] {
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
    }
    assert_eq!(control.info().layers.len(), 3);
    assert!(ring.read_all(&*disk) == bytes);
    control.stream(Arc::default()).unwrap();
    assert!(ring.read_all(&*disk) == bytes);
}

#[test]
fn image_below_is_one_users_while_it_is_written_and_shared_by_readers_again() {
    let dir = Dir::in_memory();
    make(&dir, &CASES[2].1);
    let disk = open(&dir.path("image"));
    let control = disk.image().unwrap();
    let middle = format!("qcow2:{}", dir.path("middle").display());
    let reader = open_as(&middle, "r").unwrap();
    assert!(matches!(reopen_below(&control, Mode::Write), Err(OpenError::InUse { .. })));
    // It is shared as before.
    drop((open_as(&middle, "r").unwrap(), reader));
    let start = std::time::Instant::now();
    while let Err(error) = reopen_below(&control, Mode::Write) {
        assert!(start.elapsed() < testkit::BOUND, "the readers are closed: {error}");
    }
    assert!(open_as(&middle, "r").err().unwrap().contains("in use"));
    reopen_below(&control, Mode::Read).unwrap();
    open_as(&middle, "r").unwrap();
    assert!(open_as(&middle, "w").err().unwrap().contains("in use"));
    // Another file at its path is not taken for it.
    std::fs::rename(dir.path("middle"), dir.path("moved")).unwrap();
    std::fs::copy(dir.path("moved"), dir.path("middle")).unwrap();
    let error = reopen_below(&control, Mode::Write).unwrap_err().to_string();
    assert!(error.contains("found another image at this path"), "{error}");
}

#[test]
fn what_is_committed_is_read_by_all_who_have_read_the_base_from_a_cache_before() {
    let dir = Dir::in_memory();
    std::fs::write(dir.path("base"), pattern(0..SECTORS, 1)).unwrap();
    for image in ["image", "other"] {
        create(&dir.path(image), "8M", &["-b", "base", "-F", "raw"]);
    }
    let cache = BaseCache::new(32 << 20).unwrap();
    let open = |image: &str, mode| {
        let start = std::time::Instant::now();
        let access = Access { mode, direct: true, user: None, own_loop: None, server: None };
        loop {
            match OpenChain::open(&dir.path(image), access, &|_, _| Ok(())) {
                Err(error) if start.elapsed() > testkit::BOUND => panic!("{error}"),
                Err(_) => std::thread::yield_now(),
                Ok(chain) => return Qcow2Disk::with_cache(chain, &cache).unwrap(),
            }
        }
    };
    let (disk, mut other) = (open("image", Mode::Write), open("other", Mode::Read));
    let (mut ring, mut of_other) = (Ring::new(&disk), Ring::new(&other));
    for seed in 2..4 {
        // All that the other disk has read is cached, and some of it is written to the base.
        assert!(of_other.read_all(&other)[..512] == pattern(0..1, seed - 1)[..]);
        assert!(ring.read_all(&disk)[..512] == pattern(0..1, seed - 1)[..]);
        ring.write(0, &pattern(0..128, seed)).unwrap();
        drop((of_other, other));
        let control = disk.image().unwrap();
        let start = std::time::Instant::now();
        while let Err(error) = reopen_below(&control, Mode::Write) {
            assert!(start.elapsed() < testkit::BOUND, "the other disk is closed: {error}");
        }
        control.commit(Arc::default()).unwrap();
        assert!(ring.read_all(&disk)[..512] == pattern(0..1, seed)[..], "while it is open for writing");
        reopen_below(&control, Mode::Read).unwrap();
        assert!(ring.read_all(&disk)[..512] == pattern(0..1, seed)[..]);
        other = open("other", Mode::Read);
        of_other = Ring::new(&other);
    }
    assert!(of_other.read_all(&other)[..512] == pattern(0..1, 3)[..]);
    let stats = other.cache().and_then(|cache| cache.stats()).unwrap();
    assert!(stats.hits + stats.misses > 0 && stats.cached_bytes > 0, "{stats:?}");
}
