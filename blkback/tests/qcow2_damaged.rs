//! qcow2 images with any bytes in their tables: they are refused, or their operations fail or succeed, but the image's thread goes on, and
//! the first clusters of the file, where header and tables are, are never written by a guest's data. `XPV_QCOW2_DAMAGES` sets how many.

#[path = "qcow2/common.rs"]
mod common;

use blkback::engine::format::NewImage;
use common::{Dir, MAX, Ring, create, open, open_once_closed, pattern, qemu};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Images of several kinds, with data in them.
fn images() -> Vec<Vec<u8>> {
    let dir = Dir::in_memory();
    let raw = dir.path("raw");
    std::fs::write(&raw, pattern(0..2048, 1)).unwrap();
    let (from, to) = (raw.to_str().unwrap(), dir.path("a"));
    let convert = |options: &[&str]| {
        let arguments = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2"];
        qemu(&[&arguments[..], options, &[from, to.to_str().unwrap()]].concat());
        std::fs::read(&to).unwrap()
    };
    let mut images = vec![
        convert(&["-c", "-o", "cluster_size=4096"]),
        convert(&["-c", "-o", "cluster_size=4096,compression_type=zstd"]),
        convert(&["-o", "cluster_size=512"]),
        convert(&["-o", "cluster_size=4096,refcount_bits=1"]),
        NewImage { size: 1 << 20, cluster_bits: 9, backing: None }.bytes().unwrap(),
    ];
    create(&to, "1M", &["-o", "compat=0.10,cluster_size=4096"]);
    let disk = open(&to);
    Ring::new(&*disk).write(0, &pattern(0..512, 1)).unwrap();
    drop(disk);
    images.push(std::fs::read(&to).unwrap());
    images
}

/// Changes some of an image's numbers.
fn damage(image: &mut Vec<u8>, random: &mut SmallRng) {
    for _ in 0..random.random_range(1..6) {
        // Mostly in header and tables, which are first.
        let end = if random.random_bool(0.8) { image.len().min(32 << 10) } else { image.len() };
        let at = match random.random_range(0..4) {
            0 => random.random_range(0..end.min(112)),
            _ => random.random_range(0..end) / 8 * 8,
        };
        let bytes: [u8; 8] = match random.random_range(0..4) {
            0 => random.random(),
            1 => (random.random_range(0..image.len() as u64 * 2) & !511 | random.random_range(0..4) << 62)
                .to_be_bytes(),
            2 => (1u64 << random.random_range(0..64)).to_be_bytes(),
            _ => [random.random::<u8>() & 0x81; 8],
        };
        let length = random.random_range(1..9).min(image.len() - at);
        image[at..at + length].copy_from_slice(&bytes[8 - length..]);
    }
    if random.random_bool(0.1) {
        let length = random.random_range(0..image.len());
        image.truncate(length);
    }
}

#[test]
fn any_damage_is_refused_or_survived() {
    let count = std::env::var("XPV_QCOW2_DAMAGES").ok().and_then(|count| count.parse().ok()).unwrap_or(300);
    let images = images();
    let dir = Dir::in_memory();
    let path = dir.path("a");
    let mut served = 0;
    for seed in 0..count {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut image = images[seed as usize % images.len()].clone();
        damage(&mut image, &mut random);
        std::fs::write(&path, &image).unwrap();
        let mode = if random.random_bool(0.7) { "w" } else { "r" };
        let Ok(disk) = open_once_closed(&path, mode) else { continue };
        served += 1;
        let sectors = disk.info().unwrap().sectors;
        let mut ring = Ring::new(&*disk);
        for _ in 0..24 {
            let at = random.random_range(0..sectors.min(4096));
            let bytes = ((sectors - at) * 512).min(random.random_range(1..64) * 512) as usize;
            // Any outcome will do.
            let _ = match random.random_range(0..6) {
                0..2 => ring.read(at, bytes).map(drop),
                2..4 if mode == "w" => ring.write(at, &vec![0x5a; bytes]),
                4 if mode == "w" => ring.discard(at, bytes),
                5 => ring.flush(),
                _ => ring.read(0, ((sectors * 512) as usize).min(MAX)).map(drop),
            };
        }
        drop((ring, disk));
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length < 32 << 20, "seed {seed}: the file has {length} bytes");
        let after = std::fs::read(&path).unwrap();
        assert!(!after[..72].windows(4).any(|bytes| bytes == [0x5a; 4]), "seed {seed}: data in the header");
    }
    assert!(served * 10 > count, "{served} of {count} are served: what is damaged is refused at once");
}
