//! The process that serves a qcow2 image, killed at any moment while guests write and discard, and while the image is committed, streamed,
//! kept by snapshots and made longer: what was answered is there, each image of the chain is consistent but for leaks, and what was
//! interrupted can be done again. `XPV_KILLS` sets how often it is killed, `XPV_TEST_SEED` how.

#[path = "qcow2/common.rs"]
mod common;
#[path = "qcow2/jobs.rs"]
mod jobs;

use blkback::Disk;
use blkback::engine::format::{Format, ImageControl, NewImage, OpenChain};
use blkback::engine::{Access, Mode};
use common::{Dir, Ring, check_killed, content, create, open, pattern};
use jobs::{commit, open_alone, reopen_below_at};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;
use testkit::BOUND;
use testkit::environment::number;

const DIR: &str = "XPV_TEST_QCOW2_JOBS_DIR";
const ROUND: &str = "XPV_TEST_QCOW2_JOBS_ROUND";
const RINGS: u64 = 2;
/// Parts of 4 KiB of the disk, as long as clusters.
const PARTS: u64 = 1024;
const PART: usize = 4096;

/// What one ring does, one operation after the other, in one round.
struct Script {
    random: SmallRng,
    ring: u64,
    number: u64,
}

/// An operation on a part.
struct Step {
    part: u64,
    /// `None`: it is discarded.
    data: Option<Vec<u8>>,
}

impl Script {
    fn new(round: u64, ring: u64) -> Script {
        Script { random: SmallRng::seed_from_u64(round * RINGS + ring), ring, number: round << 8 }
    }

    fn next(&mut self) -> Step {
        self.number += 1;
        let part = self.random.random_range(0..PARTS / RINGS) * RINGS + self.ring;
        let sectors = part * 8..part * 8 + 8;
        let data = (self.random.random_range(0..5) > 0).then(|| pattern(sectors, self.number & 0xf_ffff));
        Step { part, data }
    }
}

/// The process of the test below. Run as a test, without the environment variables, it returns at once.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let round: u64 = std::env::var(ROUND).unwrap().parse().unwrap();
    let dir = PathBuf::from(dir);
    let disk = open(&dir.join("image"));
    let disk_ref: &dyn Disk = &*disk;
    std::thread::scope(|scope| {
        for number in 0..RINGS {
            scope.spawn(move || {
                let mut ring = Ring::new(disk_ref);
                let mut script = Script::new(round, number);
                loop {
                    let Step { part, data } = script.next();
                    match data {
                        Some(data) => ring.write(part * 8, &data).unwrap(),
                        None => ring.discard(part * 8, PART).unwrap(),
                    }
                    writeln!(std::io::stdout(), "answered {number}").unwrap();
                }
            });
        }
        let control = disk.image().unwrap();
        let mut random = SmallRng::seed_from_u64(!round);
        for number in 0.. {
            job(&dir, &control, random.random_range(0..6), &format!("kept-{round}-{number}"));
        }
    });
}

fn job(dir: &Path, control: &ImageControl, kind: u32, kept: &str) {
    let info = control.info();
    match kind {
        0 | 1 if info.layers.len() < 6 => snapshot(dir, control, info.bytes, kept),
        2 | 3 if info.layers.len() > 1 => commit(control, &Arc::default()).unwrap(),
        4 if info.layers.len() > 2 => control.stream(Arc::default()).unwrap(),
        5 if info.bytes < 64 << 20 => control.resize(info.bytes + (12 << 10)).unwrap(),
        _ => {}
    }
}

/// As `xpv disk snapshot`.
fn snapshot(dir: &Path, control: &ImageControl, size: u64, kept: &str) {
    let overlay = NewImage { size, cluster_bits: 12, backing: Some((kept, "qcow2")) };
    std::fs::write(dir.join(kept), overlay.bytes().unwrap()).unwrap();
    let (image, kept) = (dir.join("image"), dir.join(kept));
    renameat2(AT_FDCWD, &image, AT_FDCWD, &kept, RenameFlags::RENAME_EXCHANGE).unwrap();
    control.snapshot(open_alone(&image)).unwrap();
    reopen_below_at(control, &kept, Mode::Read).unwrap();
}

fn start(dir: &Path, round: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills the process once it has answered so many operations; returns how many it has answered, by ring.
fn kill_after(mut child: Child, most: u64) -> [u64; RINGS as usize] {
    let mut answered = [0; RINGS as usize];
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let mut is_killed = false;
    let start = Instant::now();
    while output.read_line(&mut line).unwrap() > 0 {
        // A line that was not written to its end was not answered either.
        if let Some(ring) = line.strip_prefix("answered ").and_then(|ring| ring.strip_suffix('\n')) {
            answered[ring.parse::<usize>().unwrap()] += 1;
        }
        line.clear();
        if !is_killed && answered.iter().sum::<u64>() >= most {
            child.kill().unwrap();
            is_killed = true;
        }
        assert!(start.elapsed() < BOUND, "{answered:?}");
    }
    child.wait().unwrap();
    assert!(is_killed, "it ended by itself, after {answered:?}");
    answered
}

/// Checks the image and those below it; returns their paths.
fn check_chain(image: &Path) -> Vec<PathBuf> {
    let access = Access { mode: Mode::Read, direct: false, user: None, own_loop: None, server: None };
    let start = Instant::now();
    let chain = loop {
        // The kernel may still close what the process had.
        match OpenChain::open(image, access, &|_, _| Ok(())) {
            Err(error) if error.to_string().contains("in use") && start.elapsed() < BOUND => {
                std::thread::yield_now();
            }
            opened => break opened.unwrap(),
        }
    };
    let layers = chain.layers.iter().map(|layer| (layer.image.path().to_owned(), layer.format));
    let layers: Vec<_> = layers.collect();
    drop(chain);
    let qcow2 = layers.iter().filter(|(_, format)| *format == Format::Qcow2);
    qcow2.for_each(|(path, _)| check_killed(path));
    layers.into_iter().map(|(path, _)| path).collect()
}

/// Removes what no image is over any more.
fn remove_left(dir: &Path, chain: &[PathBuf]) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is_kept = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kept-"));
        if is_kept && !chain.contains(&path) {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// Enters in the model what was answered, and what the image has of the operations that were not.
fn enter(model: &mut [u8], image: &[u8], round: u64, answered: [u64; RINGS as usize]) {
    let mut open = Vec::new();
    for (ring, answered) in answered.into_iter().enumerate() {
        let mut script = Script::new(round, ring as u64);
        for number in 0..=answered {
            let Step { part, data } = script.next();
            let data = data.unwrap_or_else(|| vec![0; PART]);
            let at = part as usize * PART..(part as usize + 1) * PART;
            if number < answered {
                model[at].copy_from_slice(&data);
            } else if image[at.clone()] == data {
                open.push((at, data));
            }
        }
    }
    for (at, data) in open {
        model[at].copy_from_slice(&data);
    }
    for part in 0..PARTS as usize {
        let at = part * PART..(part + 1) * PART;
        assert!(image[at.clone()] == model[at], "round {round}, answered {answered:?}: part {part}");
    }
    assert!(image[model.len()..].iter().all(|byte| *byte == 0), "round {round}: behind the old end");
}

#[test]
fn killed_process_loses_nothing_whatever_is_done_with_its_image() {
    let kills = number("XPV_KILLS").unwrap_or(4);
    let seed = number("XPV_TEST_SEED").unwrap_or(1);
    // A killed process leaves what it has written, synchronized or not.
    let dir = Dir::in_memory();
    let mut model = pattern(0..PARTS * 8, 1 << 19);
    std::fs::write(dir.path("base"), &model).unwrap();
    let image = dir.path("image");
    let below = dir.path("");
    create(&dir.path("kept-middle"), "4M", &["-o", "cluster_size=16k", "-b", "base", "-F", "raw"]);
    create(&image, "4M", &["-o", "cluster_size=4k", "-b", "kept-middle", "-F", "qcow2"]);
    let mut random = SmallRng::seed_from_u64(seed);
    for round in seed << 16..(seed << 16) + kills {
        let answered = kill_after(start(&below, round), random.random_range(1..400));
        let chain = check_chain(&image);
        enter(&mut model, &content(&image), round, answered);
        remove_left(&below, &chain);
    }
    // What was interrupted is done again, to its end.
    let disk = open(&image);
    let control = disk.image().unwrap();
    if control.info().layers.len() > 1 {
        commit(&control, &Arc::default()).unwrap();
        control.stream(Arc::default()).unwrap();
    }
    let mut ring = Ring::new(&*disk);
    let read = ring.read_all(&*disk);
    assert!(read[..model.len()] == model && read[model.len()..].iter().all(|byte| *byte == 0));
    drop((ring, disk));
    check_chain(&image);
    assert!(content(&image) == read);
}
