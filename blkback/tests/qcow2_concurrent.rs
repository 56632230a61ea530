//! Several rings on one qcow2 image, beside a model of what each sector holds.

#[path = "qcow2/common.rs"]
mod common;
#[path = "qcow2/own.rs"]
mod own;

use blkback::Disk;
use common::{Dir, Ring, check, content, create, open, pattern};
use own::{Own, RINGS, SECTORS};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::Barrier;

/// Random operations of several rings at once; then all reads as it was written, by us and by QEMU.
fn run(name: &str, options: &[&str], seed: u64, steps: usize) {
    let dir = if seed == 1 { Dir::new() } else { Dir::in_memory() };
    let base = pattern(0..SECTORS, 1 << 19);
    std::fs::write(dir.path("base"), &base).unwrap();
    let image = dir.path("image");
    create(&image, "8M", options);
    let (base, before) = match options.contains(&"base") {
        true => (base, Some(u64::MAX)),
        false => (vec![0; base.len()], Some(0)),
    };
    let disk = open(&image);
    disk.set_detect_zeroes(seed.is_multiple_of(2));
    let barrier = Barrier::new(RINGS as usize);
    let disk_ref: &dyn Disk = &*disk;
    let model = std::thread::scope(|scope| {
        let run = |number| {
            let (barrier, base) = (&barrier, &base);
            scope.spawn(move || {
                let model = vec![before; (SECTORS / 8) as usize];
                let random = SmallRng::seed_from_u64(seed * RINGS + number);
                let mut own = Own { ring: Ring::new(disk_ref), number, model, random };
                barrier.wait();
                (0..steps).for_each(|_| own.step(base, true));
                (0..SECTORS / 8).filter(|part| part % RINGS == number).for_each(|part| own.check(part, base));
                own.ring.flush().unwrap();
                (0..SECTORS / 8).map(|part| own.expected(part, base)).collect::<Vec<_>>()
            })
        };
        let rings: Vec<_> = (0..RINGS).map(run).collect();
        let models: Vec<_> = rings.into_iter().map(|ring| ring.join().unwrap()).collect();
        (0..SECTORS / 8)
            .map(|part| models[(part % RINGS) as usize][part as usize].clone())
            .collect::<Vec<_>>()
    });
    drop(disk);
    check(&image);
    let content = content(&image);
    for (part, expected) in model.into_iter().enumerate() {
        if let Some(expected) = expected {
            assert!(content[part * 4096..][..4096] == expected, "{name}, seed {seed}: part {part}");
        }
    }
}

#[test]
fn rings_that_allocate_in_the_same_clusters_lose_nothing() {
    let steps = std::env::var("XPV_QCOW2_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(400);
    for (number, (name, options)) in [
        ("alone", &[][..]),
        ("over", &["-b", "base", "-F", "raw"][..]),
        ("small", &["-o", "cluster_size=4096", "-b", "base", "-F", "raw"][..]),
        ("tiny", &["-o", "cluster_size=512"][..]),
        ("v2", &["-o", "compat=0.10", "-b", "base", "-F", "raw"][..]),
    ]
    .into_iter()
    .enumerate()
    {
        run(name, options, number as u64 + 1, steps);
    }
}
