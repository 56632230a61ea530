//! Micro-benchmarks of the ring: one thread, both halves alternately, with blkif requests of one and eleven segments.

use benches::ring::{ours, peer, virtio};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BATCHES: u32 = 64;
const BATCH: u32 = 32;

fn ring(c: &mut Criterion) {
    let page = ring_abi::testing::Pages::new(1);
    let peer = peer::Peer::build().unwrap_or_else(|why| panic!("{why}"));
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(u64::from(BATCHES * BATCH)));
    for segments in [1, 11] {
        group.bench_function(BenchmarkId::new("ours", segments), |b| {
            b.iter(|| ours::one_thread(&page, BATCHES, BATCH, segments));
        });
        group.bench_function(BenchmarkId::new("xen's C macros", segments), |b| {
            b.iter(|| peer.one_thread(&page, BATCHES, BATCH, segments));
        });
    }
    let mut virtqueue = virtio::Virtqueue::new();
    group.bench_function(BenchmarkId::new("virtio-queue, descriptors", 3), |b| {
        b.iter(|| virtqueue.one_thread(BATCHES, BATCH as u16));
    });
    group.finish();
}

criterion_group!(benches, ring);
criterion_main!(benches);
