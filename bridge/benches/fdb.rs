//! The cost of a frame in the switch: of the forwarding database alone, and of batches of 64-byte frames.

use std::{hint::black_box, time::Duration};

use bridge::{
    Batch, Caps, PortSettings,
    fdb::{Fdb, Learned, Limits, Mac, PortId, Station},
    switch::{Switch, Turn},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const START: Turn = Turn::at(Duration::ZERO);
const BATCH: usize = 64;

fn mac(n: u16) -> [u8; 6] {
    let [a, b] = n.to_be_bytes();
    [2, 0, 0, 0, a, b]
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    for stations in [16u16, 1024] {
        let mut fdb = Fdb::new(Limits::default(), 0x5eed);
        let all: Vec<Station> = (0..stations).map(|n| Station::new(Mac::new(mac(n)), 0)).collect();
        all.iter().for_each(|station| {
            fdb.learn(*station, PortId(1), 0);
        });
        group.throughput(Throughput::Elements(all.len() as u64));
        group.bench_function(format!("lookup, {stations} stations"), |b| {
            b.iter(|| all.iter().filter(|station| fdb.lookup(black_box(**station), 0).is_some()).count());
        });
        group.bench_function(format!("learn, {stations} stations"), |b| {
            b.iter(|| {
                all.iter()
                    .filter(|station| fdb.learn(black_box(**station), PortId(1), 0) == Learned::Known)
                    .count()
            });
        });
    }
}

/// Forwards a batch from port 0, all from one source as from a guest, to `stations` on three other ports.
fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("switch");
    group.throughput(Throughput::Elements(BATCH as u64));
    for stations in [1u16, 64, 4096 - 1] {
        let mut switch = Switch::new(Limits { entries_per_port: 8192, ..Limits::default() }, 0x5eed);
        let settings = PortSettings::default();
        let attach = |port| switch.attach(PortId(port), Caps::plain(1500), &settings, Duration::ZERO);
        (0..4).for_each(attach);
        let mut batch = Batch::new(BATCH);
        for n in 1..=stations {
            batch.clear();
            batch.slot().expect("a free slot").set_slice(&[[0xff; 6], mac(n)].concat().repeat(5));
            switch.forward(PortId(1 + n % 3), batch.frames(), START);
        }
        batch.clear();
        for n in 0..BATCH as u16 {
            let to = 1 + n.wrapping_mul(61) % stations;
            batch.slot().expect("a free slot").set_slice(&[mac(to), mac(0), [0; 6]].concat().repeat(4)[..64]);
        }
        group.bench_function(format!("forward 64 bytes to {stations} stations"), |b| {
            b.iter(|| black_box(switch.forward(PortId(0), black_box(batch.frames()), START)));
        });
    }
}

criterion_group!(benches, lookup, forward);
criterion_main!(benches);
