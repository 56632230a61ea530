//! Rows S2d and S2d1: what two guests have of a medium beside one whose ring is far deeper. The medium serves operations in the order of
//! their coming, and takes as long for each.

use super::ours;
use crate::row::{Goal, Row};
use crate::sample::Sample;
use blkback::VbdDriver;
use blkfront::{Disk, Operation, Options};
use ring_abi::DomId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use testkit::block::{Backend, FixedTimeDisk, XVDA};

/// Operations that the medium serves at a time.
const AT_ONCE: usize = 4;
/// How long it takes for each.
const SERVICE: Duration = Duration::from_micros(400);
/// One measurement, after the first operations of all.
const TIME: Duration = Duration::from_millis(1500);
const WARM_UP: Duration = Duration::from_millis(500);
const ROUNDS: usize = 5;
const HOG: DomId = DomId(1);
const VICTIMS: [DomId; 2] = [DomId(2), DomId(3)];
/// Requests of the hog, of a ring of 16 pages.
const HOG_DEPTH: usize = 512;

/// Row S2d: victims of depth 32.
///
/// # Errors
/// The machine does not come up.
pub fn s2d() -> Result<Row, String> {
    row("S2d", 32)
}

/// Our side of S2d.
///
/// # Errors
/// As [`s2d`].
pub fn s2d_once() -> Result<Sample, String> {
    Ok(Sample::single("IOPS", shares(32)?.0))
}

/// Row S2d1: victims of depth 1.
///
/// # Errors
/// As [`s2d`].
pub fn s2d_one() -> Result<Row, String> {
    row("S2d1", 1)
}

/// Our side of S2d1.
///
/// # Errors
/// As [`s2d`].
pub fn s2d_one_once() -> Result<Sample, String> {
    Ok(Sample::single("IOPS", shares(1)?.0))
}

fn row(name: &str, depth: usize) -> Result<Row, String> {
    let pairs = (0..ROUNDS).map(|_| shares(depth)).collect::<Result<Vec<_>, _>>()?;
    let what = format!(
        "4 KiB random read, the slower of two guests of depth {depth} beside one of {HOG_DEPTH}, {AT_ONCE} \
         operations at a time in {} us each; its fair share",
        SERVICE.as_micros()
    );
    Ok(Row::new(name, what, "IOPS", Goal::AtLeast(0.98), &pairs))
}

/// What the slower victim reads a second, and what its fair share is: a third of what all read, or what it could have of the medium
/// with so few requests.
fn shares(depth: usize) -> Result<(f64, f64), String> {
    let machine = testkit::Machine::without_log();
    let dom0 = machine.domain(DomId::DOM0);
    let medium = FixedTimeDisk::new(AT_ONCE, SERVICE);
    let opener = Box::new(move |_: &_, _: &_| Ok(Arc::new(medium.clone()) as Arc<dyn blkback::Disk>));
    let driver = VbdDriver::with_opener(dom0.clone(), dom0.clone(), opener);
    let _backend = Backend::start_with(driver, &dom0);
    let open = |domid, ring_page_order| {
        machine.attach_disk(domid, XVDA, "none");
        let guest = machine.domain(domid);
        let options = Options { ring_page_order, ..Options::default() };
        Disk::open_with(guest.clone(), guest.clone(), guest, XVDA, options).map_err(|e| e.to_string())
    };
    let disks = [(open(HOG, 4)?, HOG_DEPTH), (open(VICTIMS[0], 0)?, depth), (open(VICTIMS[1], 0)?, depth)];
    let counts: [AtomicU64; 3] = Default::default();
    let start = Instant::now();
    let made = std::thread::scope(|scope| {
        for ((mut disk, depth), count) in disks.into_iter().zip(&counts) {
            scope.spawn(move || {
                let goes_on = |made| {
                    count.store(made, Ordering::Relaxed);
                    start.elapsed() < WARM_UP + TIME
                };
                ours::run_while(&mut disk, Operation::Read, depth, goes_on)
            });
        }
        let read = || counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        std::thread::sleep(WARM_UP);
        let (before, began) = (read(), Instant::now());
        std::thread::sleep(TIME.saturating_sub(Duration::from_millis(20)));
        let (after, took) = (read(), began.elapsed().as_secs_f64());
        [0, 1, 2].map(|ring| (after[ring] - before[ring]) as f64 / took)
    });
    let third = made.iter().sum::<f64>() / 3.0;
    let possible = depth as f64 / SERVICE.as_secs_f64();
    Ok((made[1].min(made[2]), third.min(possible)))
}
