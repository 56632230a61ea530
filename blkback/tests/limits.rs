//! Limits of disks, in real time: what is never exceeded however loaded the machine is, and what is not delayed by them. How exact they
//! are is checked in virtual time, in `blkback/src/throttle`.

use std::time::{Duration, Instant};

use blkback::{DataPath, Tuning, VbdDriver};
use blkfront::{Completion, Disk, Operation, Options, Request};
use ring_abi::DomId;
use testkit::block::{Backend, GUEST, XVDA, open, options, wait_for};
use testkit::{BOUND, Machine};
use xenbus::Device;
use xenstore::Nodes;

/// What is saved up at most, in seconds of the limit.
const BURST: f64 = 0.05;

/// A disk with these keys in its backend's directory, before a backend that offers four queues is started.
fn serve(keys: &[(&str, &str)]) -> (Machine, Backend, Device) {
    let machine = Machine::new();
    let device = machine.attach_disk(GUEST, XVDA, "ram:67108864");
    set(&machine, &device, keys);
    let back = start(&machine);
    (machine, back, device)
}

fn start(machine: &Machine) -> Backend {
    let dom0 = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::new(dom0.clone(), dom0.clone());
    driver.set_max_queues(4);
    Backend::start_with(driver, &dom0)
}

fn set(machine: &Machine, device: &Device, keys: &[(&str, &str)]) {
    keys.iter().for_each(|(name, value)| {
        machine.client().write(&format!("{}/{name}", device.back_path()), value).unwrap();
    });
}

fn four_queues() -> Options {
    Options { queues: 4, ..options() }
}

fn in_force(back: &Backend) -> Vec<(&'static str, u64)> {
    back.registry.get((GUEST, XVDA)).unwrap().stats.unwrap().limits().values
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < BOUND, "{what}");
        std::thread::yield_now();
    }
}

fn request(disk: &Disk, operation: Operation, token: u64, bytes: usize) -> Request {
    let buffer = (operation != Operation::Flush).then(|| disk.buffer(bytes).unwrap());
    let bytes = if buffer.is_some() { bytes } else { 0 };
    Request { token, operation, sector: 0, bytes, buffer }
}

/// Submits as many requests as the rings hold.
fn fill(disk: &mut Disk, operation: Operation, bytes: usize) {
    while disk.in_flight() < disk.depth() {
        let next = request(disk, operation, 0, bytes);
        if disk.submit(next).is_err() {
            break;
        }
    }
    disk.commit().unwrap();
}

/// Keeps the rings full until so much time has passed; returns how many requests completed, and in how much time.
fn run(disk: &mut Disk, operation: Operation, bytes: usize, time: Duration) -> (f64, f64) {
    let start = Instant::now();
    let mut count = 0;
    let mut done: Vec<Completion> = Vec::new();
    while start.elapsed() < time {
        fill(disk, operation, bytes);
        disk.wait(&mut done, Some(Duration::from_millis(100))).unwrap();
        count += done.len();
        done.drain(..).for_each(|completion| completion.check().unwrap());
    }
    (count as f64, start.elapsed().as_secs_f64())
}

#[test]
fn limit_is_one_of_all_queues_from_the_first_request_on_and_is_changed_live() {
    let (machine, back, device) = serve(&[("iops-total", "400"), ("iops-size", "65536")]);
    let mut disk = open(&machine.domain(GUEST), four_queues());
    assert_eq!((disk.depth(), in_force(&back)), (128, vec![("iops-total", 400), ("iops-size", 65536)]));
    let (count, time) = run(&mut disk, Operation::Read, 4096, Duration::from_secs(2));
    assert!(count <= 400.0 * (time + BURST) + 1.0, "{count} in {time} s");
    assert!(count >= 200.0 * time, "{count} in {time} s");
    // A bad value changes nothing.
    set(&machine, &device, &[("iops-total", "fast")]);
    set(&machine, &device, &[("bps-read", "1")]);
    let (count, time) = run(&mut disk, Operation::Read, 4096, Duration::from_millis(500));
    assert!(count >= 200.0 * time, "{count} in {time} s");
    assert_eq!(in_force(&back), [("iops-total", 400), ("iops-size", 65536)]);
    // Requests that wait under the old limits are those of the new ones.
    set(&machine, &device, &[("bps-read", "0"), ("iops-total", "1")]);
    wait_until("1 request a second", || in_force(&back)[0] == ("iops-total", 1));
    fill(&mut disk, Operation::Read, 4096);
    let start = Instant::now();
    set(&machine, &device, &[("iops-total", "0")]);
    let depth = disk.depth();
    wait_for(&mut disk, depth).iter().for_each(|completion| completion.check().unwrap());
    assert!(start.elapsed() < Duration::from_secs(depth as u64 / 4), "{:?}", start.elapsed());
    assert_eq!(in_force(&back), []);
    disk.close().unwrap();
}

#[test]
fn requests_larger_than_a_second_of_the_limit_are_late_and_never_fail() {
    const BYTES: usize = 1 << 20;
    let (machine, _back, _) = serve(&[("bps-read", "2097152")]);
    let mut disk = open(&machine.domain(GUEST), four_queues());
    let start = Instant::now();
    (0..5).for_each(|token| {
        let read = request(&disk, Operation::Read, token, BYTES);
        disk.submit(read).unwrap();
    });
    wait_for(&mut disk, 5).iter().for_each(|completion| completion.check().unwrap());
    // The first one goes into debt; the others are half a second each.
    let time = start.elapsed();
    assert!(time >= Duration::from_millis(1900), "{time:?}");
    // Writes are not limited.
    let (count, time) = run(&mut disk, Operation::Write, 4096, Duration::from_millis(300));
    assert!(count > 512.0 * time, "{count} in {time} s");
    disk.close().unwrap();
}

#[test]
fn flush_passes_writes_that_wait_and_a_barrier_does_not() {
    let (machine, back, _) = serve(&[("iops-write", "2")]);
    let mut disk = open(&machine.domain(GUEST), options());
    for (token, operation) in (0..).zip([Operation::Write; 4].into_iter().chain([Operation::Flush])) {
        let next = request(&disk, operation, token, 4096);
        disk.submit(next).unwrap();
    }
    let done = wait_for(&mut disk, 5);
    let order: Vec<_> = done.iter().map(|completion| completion.request.token).collect();
    assert!(order.iter().position(|token| *token == 4) < Some(3), "{order:?}");
    let writes: Vec<_> = order.into_iter().filter(|token| *token < 4).collect();
    assert_eq!(writes, [0, 1, 2, 3]);
    for (token, operation) in (0..).zip([Operation::Write, Operation::Barrier, Operation::Write]) {
        let next = request(&disk, operation, token, 4096);
        disk.submit(next).unwrap();
    }
    let order: Vec<_> = wait_for(&mut disk, 3).iter().map(|completion| completion.request.token).collect();
    assert_eq!(order, [0, 1, 2]);
    drop(back);
}

#[test]
fn backend_that_stops_finishes_what_it_took_at_once() {
    let (machine, back, _) = serve(&[("iops-total", "1")]);
    let mut disk = open(&machine.domain(GUEST), four_queues());
    fill(&mut disk, Operation::Write, 4096);
    let in_flight = || back.registry.get((GUEST, XVDA)).unwrap().stats.unwrap().snapshot().in_flight;
    wait_until("all requests are taken", || in_flight() >= Some(120));
    let start = Instant::now();
    back.stop();
    let time = start.elapsed();
    assert!(time < Duration::from_secs(10), "{time:?}");
    let done = wait_for(&mut disk, 120);
    done.iter().for_each(|completion| completion.check().unwrap());
    let _back = self::start(&machine);
    disk.close().unwrap();
}

#[test]
fn disks_of_a_group_share_the_strictest_limit_in_equal_parts() {
    const XVDB: u32 = XVDA + 16;
    let (machine, back, _) = serve(&[("throttle-group", "gold"), ("iops-total", "300")]);
    let other = machine.attach_disk(GUEST, XVDB, "ram:67108864");
    set(&machine, &other, &[("throttle-group", "gold"), ("iops-total", "200")]);
    let guest = machine.domain(GUEST);
    let mut one = open(&guest, four_queues());
    let mut two = Disk::open_with(guest.clone(), guest.clone(), guest.clone(), XVDB, options()).unwrap();
    wait_until("the limits of the other disk", || in_force(&back) == [("iops-total", 200)]);
    let time = Duration::from_secs(2);
    let [(first, one_time), (second, two_time)] = std::thread::scope(|scope| {
        let run_on = |disk| scope.spawn(move || run(disk, Operation::Read, 4096, time));
        [run_on(&mut one), run_on(&mut two)].map(|thread| thread.join().unwrap())
    });
    let time = one_time.max(two_time);
    assert!(first + second <= 200.0 * (time + BURST) + 1.0, "{first} and {second} in {time} s");
    assert!(first + second >= 100.0 * time, "{first} and {second} in {time} s");
    // One has four rings and the other one.
    assert!(second >= 0.1 * first, "{first} and {second}");
    drop((one, two));
}

/// A ring's thread never sleeps over requests that wait, whatever it was doing when the limits changed.
#[test]
fn limits_that_are_changed_under_load_stop_nothing() {
    let machine = Machine::new();
    let device = machine.attach_disk(GUEST, XVDA, "ram:67108864");
    let dom0 = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::new(dom0.clone(), dom0.clone());
    driver.set_tuning(Tuning { data_path: DataPath::Persistent, batch: 64, ..Tuning::default() });
    let _back = Backend::start_with(driver, &dom0);
    let mut disk = open(&machine.domain(GUEST), options());
    for limit in ["0", "3000", "500", "0", "2000", "1000", "4000", "300"].into_iter().cycle().take(40) {
        let mut done: Vec<Completion> = Vec::new();
        let start = Instant::now();
        let mut count = 0;
        set(&machine, &device, &[("iops-total", limit)]);
        while count < 60 {
            let operations = [Operation::Write, Operation::Read, Operation::Flush, Operation::Barrier];
            let operation = operations[if count % 15 == 0 { 3 } else { count % 3 }];
            let next = request(&disk, operation, 0, 4096);
            let _ = disk.submit(next);
            disk.wait(&mut done, Some(Duration::from_millis(1))).unwrap();
            count += done.len();
            done.drain(..).for_each(|completion| completion.check().unwrap());
            assert!(start.elapsed() < BOUND, "{} in flight with a limit of {limit}", disk.in_flight());
        }
    }
    disk.close().unwrap();
}
