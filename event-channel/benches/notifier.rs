//! The cost of an event: sending and taking one, merging one, and a token of the rate limit.

use criterion::{Criterion, criterion_group, criterion_main};
use event_channel::{EventChannels, Notifier};
use event_loop::TokenBucket;
use hypervisor::local::Sandbox;
use ring_abi::DomId;
use ring_abi::ring::Notify;
use std::hint::black_box;
use std::time::Duration;

fn notifier(c: &mut Criterion) {
    let sandbox = Sandbox::new().expect("a broker");
    let dom0 = sandbox.join(DomId(0)).expect("domain 0");
    let guest = sandbox.join(DomId(1)).expect("a guest");
    let unbound = guest.alloc_unbound(DomId(0)).expect("alloc_unbound");
    let mut back = Notifier::new(dom0.bind_interdomain(DomId(1), unbound.port()).expect("bind_interdomain"));
    let mut front = Notifier::new(unbound);
    back.take().expect("take");

    let mut group = c.benchmark_group("notifier");
    group.bench_function("notify and take", |b| {
        b.iter(|| {
            front.want(Notify::Yes);
            front.flush().expect("flush");
            back.take().expect("take");
            back.worked(true);
            back.pause(Duration::ZERO)
        });
    });
    group.bench_function("not wanted", |b| {
        b.iter(|| {
            front.want(black_box(Notify::No));
            front.flush().expect("flush")
        });
    });
    let mut bucket = TokenBucket::new(1_000_000_000, 1_000, Duration::ZERO);
    let mut now = 0;
    group.bench_function("token", |b| {
        b.iter(|| {
            now += 1;
            bucket.take(1, Duration::from_nanos(now))
        });
    });
    group.finish();
}

criterion_group!(benches, notifier);
criterion_main!(benches);
