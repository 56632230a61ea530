//! The cost of the local hypervisor's grant operations, in processor time, so that other programs on the machine do
//! not count.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, Throughput, criterion_group, criterion_main};
use grant_table::{
    Access, CopyOp, CopyPtr, GrantTable, OwnedPage, PageAcceptor, PageDonor, Shared, TransferOp,
};
use hypervisor::local::{Domain, Sandbox};
use ring_abi::{DomId, PAGE_SIZE};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::VolatileSlice;

const GUEST: DomId = DomId(1);
/// Operations of a batch.
const BATCH: usize = 32;

/// This thread's processor time.
struct CpuTime;

type Criterion = criterion::Criterion<CpuTime>;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
        now.into()
    }
    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

struct Setup {
    _sandbox: Sandbox,
    dom0: Arc<Domain>,
    guest: Arc<Domain>,
    shared: Shared,
}

fn setup() -> Setup {
    let sandbox = Sandbox::new().expect("a broker");
    let dom0 = sandbox.join(DomId::DOM0).expect("domain 0");
    let guest = sandbox.join(GUEST).expect("a guest");
    let shared = guest.share(DomId::DOM0, BATCH, Access::ReadWrite).expect("share");
    Setup { _sandbox: sandbox, dom0, guest, shared }
}

fn map(c: &mut Criterion) {
    let setup = setup();
    let mut group = c.benchmark_group("map and unmap");
    for pages in [1, 11, 32] {
        group.throughput(Throughput::Elements(pages as u64));
        group.bench_function(format!("{pages} pages"), |b| {
            let refs = &setup.shared.refs()[..pages];
            b.iter(|| {
                let mapping = setup.dom0.map(GUEST, black_box(refs), Access::ReadWrite);
                black_box(mapping.as_ref().expect("map").base(0))
            });
        });
    }
    group.finish();
}

/// Copies from one granted page, or each copy from a page of its own.
fn ops<'a>(shared: &Shared, one_page: bool, len: u16, memory: VolatileSlice<'a>) -> Vec<CopyOp<'a>> {
    let op = |n: usize| {
        let gref = shared.refs()[if one_page { 0 } else { n }];
        let source = CopyPtr::Grant { domid: GUEST, gref, offset: 0 };
        CopyOp::new(
            source,
            CopyPtr::Memory(memory.subslice(n * PAGE_SIZE, PAGE_SIZE).expect("inside").into()),
            len,
        )
    };
    (0..BATCH).map(op).collect()
}

fn copy(c: &mut Criterion) {
    let setup = setup();
    let mut memory = vec![0; BATCH * PAGE_SIZE];
    let mut group = c.benchmark_group("copy, a batch of 32");
    group.throughput(Throughput::Elements(BATCH as u64));
    for len in [64, 4096] {
        for one_page in [false, true] {
            let mut ops = ops(&setup.shared, one_page, len, VolatileSlice::from(&mut memory[..]));
            let which = if one_page { "of one page" } else { "of 32 pages" };
            group.bench_function(format!("{len} bytes {which}"), |b| {
                b.iter(|| setup.dom0.copy(black_box(&mut ops)));
            });
        }
    }
    group.finish();
}

fn transfer(c: &mut Criterion) {
    let setup = setup();
    let mut group = c.benchmark_group("transfer, a batch of 32");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut accept = setup.guest.accept_transfer(DomId::DOM0, BATCH).expect("accept_transfer");
    let mut pages: Vec<OwnedPage> = Vec::with_capacity(BATCH);
    let mut got: Vec<OwnedPage> = Vec::with_capacity(BATCH);
    group.bench_function("balloon out, populate, transfer, take", |b| {
        b.iter_batched(
            || (),
            |()| {
                setup.guest.balloon_out(DomId::DOM0, BATCH).expect("balloon_out");
                setup.dom0.populate(GUEST, BATCH, &mut pages).expect("populate");
                let op = |n: usize| TransferOp::new(&pages[n], GUEST, accept.refs()[n]);
                let mut ops: [TransferOp; BATCH] = std::array::from_fn(op);
                setup.dom0.transfer(&mut ops).expect("transfer");
                pages.clear();
                for n in 0..BATCH {
                    got.push(accept.take(n).expect("take").expect("a page"));
                    accept.arm(n);
                }
                got.clear();
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn share(c: &mut Criterion) {
    let setup = setup();
    c.bench_function("share and end one page", |b| {
        b.iter(|| setup.guest.share(DomId::DOM0, 1, Access::ReadWrite).expect("share"));
    });
}

criterion_group! {
    name = benches;
    config = criterion::Criterion::default().with_measurement(CpuTime);
    targets = map, copy, transfer, share
}
criterion_main!(benches);
