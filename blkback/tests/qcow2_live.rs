//! What is done with a qcow2 image while guests use it: snapshots and growth.

#[path = "qcow2/common.rs"]
mod common;
#[path = "qcow2/jobs.rs"]
mod jobs;

use blkback::Disk;
use blkback::engine::Mode;
use blkback::engine::format::{MAX_LAYERS, NewImage, OpenChain};
use common::{Dir, Ring, check, content, create, open, pattern};
use jobs::{open_alone, reopen_below};
use std::sync::atomic::{AtomicBool, Ordering};

const SECTORS: u64 = 16_384;

fn overlay(dir: &Dir, name: &str, below: &str, sectors: u64) -> OpenChain {
    let image = NewImage { size: sectors * 512, cluster_bits: 16, backing: Some((below, "qcow2")) };
    std::fs::write(dir.path(name), image.bytes().unwrap()).unwrap();
    open_alone(&dir.path(name))
}

#[test]
fn snapshots_amid_the_writes_of_several_rings_lose_nothing_and_stay_as_they_are() {
    const SNAPSHOTS: u64 = 3;
    let dir = Dir::new();
    create(&dir.path("0"), "8M", &[]);
    let disk = open(&dir.path("0"));
    let disk_ref: &dyn Disk = &*disk;
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        // Each ring writes the sectors of its own, a round after the other, by which all of a cluster's rings meet.
        let write = |number: u64| {
            let stop = &stop;
            scope.spawn(move || {
                let mut ring = Ring::new(disk_ref);
                let mut round = 1;
                while !stop.load(Ordering::Relaxed) {
                    for at in (number * 8..SECTORS).step_by(512) {
                        ring.write(at, &pattern(at..at + 8, round)).unwrap();
                        assert!(ring.read(at, 4096).unwrap() == pattern(at..at + 8, round));
                    }
                    round += 1;
                }
                round - 1
            })
        };
        let rings: Vec<_> = (0..2).map(write).collect();
        let control = disk.image().unwrap();
        let mut ring = Ring::new(disk_ref);
        for number in 1..=SNAPSHOTS {
            // A write that was answered is in the image that is frozen.
            ring.write(300, &pattern(300..301, number)).unwrap();
            let below = format!("{}", number - 1);
            control.snapshot(overlay(&dir, &format!("{number}"), &below, SECTORS)).unwrap();
            let frozen = std::fs::read(dir.path(&below)).unwrap();
            ring.write(301, &pattern(301..302, number)).unwrap();
            assert!(ring.read(300, 512).unwrap() == pattern(300..301, number));
            ring.flush().unwrap();
            assert!(std::fs::read(dir.path(&below)).unwrap() == frozen, "written after it was frozen");
        }
        let layers: Vec<_> = (0..=SNAPSHOTS).rev().map(|number| dir.path(&number.to_string())).collect();
        assert_eq!(control.info().layers, layers);
        stop.store(true, Ordering::Relaxed);
        rings.into_iter().map(|ring| ring.join().unwrap()).collect::<Vec<_>>()
    });
    let mut ring = Ring::new(disk_ref);
    let read = ring.read_all(disk_ref);
    drop((ring, disk));
    for (number, round) in rounds.into_iter().enumerate() {
        for at in (number as u64 * 8..SECTORS).step_by(512) {
            assert!(read[at as usize * 512..][..4096] == pattern(at..at + 8, round), "{at}, round {round}");
        }
    }
    (0..=SNAPSHOTS).for_each(|number| check(&dir.path(&number.to_string())));
    assert!(content(&dir.path(&SNAPSHOTS.to_string())) == read);
    for number in 0..SNAPSHOTS {
        let content = content(&dir.path(&number.to_string()));
        assert!(content[300 * 512..][..512] == pattern(300..301, number + 1), "snapshot {number}");
        assert!(content[301 * 512..][..512] != pattern(301..302, number + 1), "snapshot {number}");
    }
}

#[test]
fn rings_begin_and_flush_while_files_of_the_chain_are_replaced() {
    let dir = Dir::in_memory();
    create(&dir.path("0"), "8M", &[]);
    let disk = open(&dir.path("0"));
    let disk_ref: &dyn Disk = &*disk;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                Ring::new(disk_ref).flush().unwrap();
            }
        });
        scope.spawn(move || {
            let mut ring = Ring::new(disk_ref);
            while !stop.load(Ordering::Relaxed) {
                ring.write(8, &pattern(8..16, 1)).unwrap();
                ring.flush().unwrap();
            }
        });
        let _stop_on_drop = testkit::StopOnDrop(stop);
        let control = disk.image().unwrap();
        for number in 1..MAX_LAYERS {
            let below = (number - 1).to_string();
            control.snapshot(overlay(&dir, &number.to_string(), &below, SECTORS)).unwrap();
            for mode in [Mode::Read, Mode::Write, Mode::Read] {
                reopen_below(&control, mode).unwrap();
            }
        }
    });
}

#[test]
fn snapshot_that_is_no_empty_image_of_the_same_length_is_refused() {
    let dir = Dir::new();
    create(&dir.path("a"), "8M", &[]);
    let disk = open(&dir.path("a"));
    let control = disk.image().unwrap();
    assert!(control.snapshot(overlay(&dir, "b", "a", SECTORS - 8)).is_err());
    let mut ring = Ring::new(&*disk);
    ring.write(5, &pattern(5..6, 1)).unwrap();
    assert_eq!(control.info().layers, [dir.path("a")]);
    control.snapshot(overlay(&dir, "b", "a", SECTORS)).unwrap();
    assert_eq!(ring.read(5, 512).unwrap(), pattern(5..6, 1));
}

#[test]
fn snapshot_beyond_the_longest_chain_that_can_be_opened_again_is_refused() {
    let dir = Dir::in_memory();
    create(&dir.path("0"), "8M", &[]);
    let disk = open(&dir.path("0"));
    let control = disk.image().unwrap();
    let snapshot = |number: usize| {
        control.snapshot(overlay(&dir, &number.to_string(), &(number - 1).to_string(), SECTORS))
    };
    (1..MAX_LAYERS).for_each(|number| snapshot(number).unwrap());
    let error = snapshot(MAX_LAYERS).unwrap_err().to_string();
    assert_eq!(error, "found 16 images below the new one, expected 15 at most, of 16 in a chain");
    drop(disk);
    open(&dir.path(&(MAX_LAYERS - 1).to_string()));
}

#[test]
fn image_grows_while_it_is_served() {
    for options in [&[][..], &["-o", "cluster_size=512"], &["-b", "base", "-F", "raw"]] {
        let dir = Dir::new();
        std::fs::write(dir.path("base"), pattern(0..100, 9)).unwrap();
        let image = dir.path("a");
        // Not of whole clusters.
        create(&image, "1M", options);
        let disk = open(&image);
        let control = disk.image().unwrap();
        let mut ring = Ring::new(&*disk);
        ring.write(2040, &pattern(2040..2048, 1)).unwrap();
        control.resize((1 << 20) + 512).unwrap();
        assert_eq!(disk.info().unwrap().sectors, 2049);
        ring.write(2048, &pattern(2048..2049, 2)).unwrap();
        control.resize(64 << 20).unwrap();
        assert_eq!(disk.info().unwrap().sectors, 64 << 11);
        assert!(ring.read(2049, 127 * 512).unwrap() == vec![0; 127 * 512], "{options:?}");
        ring.write(130_000, &pattern(130_000..130_064, 3)).unwrap();
        assert!(ring.read(2040, 9 * 512).unwrap()[..8 * 512] == pattern(2040..2048, 1));
        assert!(ring.read(130_000, 64 * 512).unwrap() == pattern(130_000..130_064, 3));
        assert!(control.resize(1 << 20).is_err(), "a disk does not shrink");
        drop((ring, disk));
        check(&image);
        let content = content(&image);
        assert!(content.len() == 64 << 20 && content[2048 * 512..2049 * 512] == pattern(2048..2049, 2));
        assert!(content[130_000 * 512..130_064 * 512] == pattern(130_000..130_064, 3));
    }
}

#[test]
fn image_that_is_only_read_is_not_changed() {
    let dir = Dir::new();
    create(&dir.path("a"), "8M", &[]);
    let disk = common::open_as(&format!("qcow2:{}", dir.path("a").display()), "r").unwrap();
    assert_eq!(disk.image().unwrap().resize(16 << 20).unwrap_err().raw_os_error(), Some(libc::EROFS));
}
