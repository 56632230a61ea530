//! The cost of a frame in a running bridge: received in place by one port, switched, and sent by another, in the
//! worker's rounds. The ports do as little as possible: they have no peer and make no system call.
//!
//! The worker thread's processor time from the first frame to the last is measured.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use bridge::{Batch, Bridge, Caps, Config, Frames, Interest, Port, Stats};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nix::{
    sys::eventfd::EventFd,
    time::{ClockId, clock_gettime},
};

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

/// A port that receives `wanted` copies of a frame and sends the time of the first; it discards frames sent to it, and
/// sends the time of the last one expected.
struct Null {
    frame: Vec<u8>,
    wanted: Arc<AtomicU64>,
    expected: Arc<AtomicU64>,
    receiving: bool,
    times: Sender<Duration>,
    stats: Arc<Stats>,
    notifier: EventFd,
    copy: [u8; 2048],
}

impl Port for Null {
    fn caps(&self) -> Caps {
        Caps::full(1500)
    }
    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        let wanted = self.wanted.load(SeqCst);
        if wanted > 0 && !self.receiving {
            let _ = self.times.send(cpu_time());
        }
        let count = wanted.min(into.room() as u64);
        self.receiving = wanted > count;
        for _ in 0..count {
            if let Some(frame) = into.slot() {
                frame.fill_head(self.frame.len()).copy_from_slice(&self.frame);
            }
        }
        if count > 0 {
            self.wanted.store(wanted - count, SeqCst);
            self.stats.rx(count, count * self.frame.len() as u64);
        }
        Ok(())
    }
    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        let mut bytes = 0;
        for frame in frames.iter() {
            bytes += frame.copy_to(&mut self.copy) as u64;
        }
        self.stats.tx(frames.len() as u64, bytes);
        let expected = self.expected.load(SeqCst);
        let left = expected.saturating_sub(frames.len() as u64);
        self.expected.store(left, SeqCst);
        if left == 0 && expected > 0 {
            let _ = self.times.send(cpu_time());
        }
        Ok(frames.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        Ok(false)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}

fn frame(to: u8, from: u8) -> Vec<u8> {
    let address = |n: u8| [2, 0, 0, 0, 0, n];
    [address(to), address(from), [0x88, 0xb5, 0, 0, 0, 0]].concat().repeat(4)[..64].to_vec()
}

/// Controls a `Null` port from the benchmark's thread.
struct Controls {
    wanted: Arc<AtomicU64>,
    expected: Arc<AtomicU64>,
    times: Receiver<Duration>,
}

fn attach(bridge: &Bridge, name: &str, frame: Vec<u8>) -> Controls {
    let (sender, times) = channel();
    let wanted = Arc::new(AtomicU64::default());
    let expected = Arc::new(AtomicU64::default());
    let controls = Controls { wanted: wanted.clone(), expected: expected.clone(), times };
    let port = Null {
        frame,
        wanted,
        expected,
        receiving: false,
        times: sender,
        stats: Arc::default(),
        notifier: EventFd::new().expect("eventfd"),
        copy: [0; 2048],
    };
    bridge.attach(name, Box::new(port)).expect("attach");
    controls
}

fn rounds(c: &mut Criterion) {
    let mut group = c.benchmark_group("worker");
    group.throughput(Throughput::Elements(1));
    for ports in [2u8, 16] {
        let config = Config { busy_poll: Duration::from_secs(1000), ..Config::default() };
        let bridge = Bridge::start(config).expect("a bridge");
        let source = attach(&bridge, "source", frame(2, 1));
        let sink = attach(&bridge, "sink", frame(1, 2));
        let idle: Vec<Controls> = (2..ports).map(|n| attach(&bridge, &n.to_string(), vec![])).collect();
        // The switch learns station 2 from one frame.
        sink.wanted.store(1, SeqCst);
        sink.times.recv().expect("the worker runs");
        group.bench_function(format!("64 bytes, {ports} ports"), |b| {
            b.iter_custom(|frames| {
                sink.expected.store(frames, SeqCst);
                source.wanted.store(frames, SeqCst);
                let start = source.times.recv().expect("the worker runs");
                sink.times.recv().expect("the worker runs") - start
            });
        });
        bridge.stop();
        drop(idle);
    }
}

criterion_group!(benches, rounds);
criterion_main!(benches);
