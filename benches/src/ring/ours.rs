//! Our side of the ring rows: the same loops as `c/ring_peer.c`, on `ring-abi`.
#![allow(unsafe_code)] // Assembly of no instructions, in `consume`.

use ring_abi::GrantRef;
use ring_abi::blkif::{Io, OP_READ, Request, Response, Segment, Status, X86_64};
use ring_abi::ring::{Back, Front};
use ring_abi::testing::{PageRef, Pages};
use std::arch::asm;
use std::hint::spin_loop;

/// The request that is sent over and over, with another `id` each time.
pub fn prepared(segments: u8) -> Request {
    let segment = |i| Segment { gref: GrantRef(100 + u32::from(i)), first_sect: 0, last_sect: 7 };
    Request::Io(Io {
        operation: OP_READ,
        handle: 0,
        id: 0,
        sector_number: 2048,
        nr_segments: segments,
        segments: (0..segments).map(segment).collect(),
    })
}

/// The value is looked at, as far as the compiler knows, and must exist in memory, whole: `consume` of the C peer.
/// (`black_box` of a reference would also store the reference itself.)
#[inline(always)]
fn consume<T>(value: &T) {
    // SAFETY: no instructions at all.
    unsafe { asm!("/* {0} */", in(reg) value, options(nostack, preserves_flags)) }
}

type FrontHalf<'a> = Front<X86_64, PageRef<'a>>;
type BackHalf<'a> = Back<X86_64, PageRef<'a>>;

#[inline(always)]
fn ask(front: &mut FrontHalf<'_>, request: &mut Request, id: &mut u64, count: u32) {
    for _ in 0..count {
        if let Request::Io(io) = request {
            io.id = *id;
        }
        if !front.push(request) {
            break;
        }
        *id += 1;
    }
    consume(&front.commit());
}

#[inline(always)]
fn serve(back: &mut BackHalf<'_>, request: &mut Request) -> u32 {
    let mut served = 0;
    let _ = back.refresh().expect("a well-behaved frontend");
    while back.seen() != 0 && back.pop_into(request).expect("a well-behaved frontend") {
        consume(request);
        let id = request.id();
        let operation = request.operation();
        back.push(&Response { id, operation, status: Status::OKAY });
        served += 1;
    }
    if served != 0 {
        consume(&back.commit());
    }
    served
}

#[inline(always)]
fn reap(front: &mut FrontHalf<'_>) -> u32 {
    let mut reaped = 0;
    let _ = front.refresh().expect("a well-behaved backend");
    while front.seen() != 0
        && let Some(response) = front.pop().expect("a well-behaved backend")
    {
        consume(&response);
        reaped += 1;
    }
    reaped
}

/// Both halves alternately on one thread; the requests answered.
#[inline(never)]
pub fn one_thread(page: &Pages, batches: u32, batch: u32, segments: u8) -> u64 {
    let mut front = FrontHalf::init(page.first()).expect("one page");
    let mut back = BackHalf::attach(page.first()).expect("one page");
    let mut request = prepared(segments);
    let mut id = 0;
    let mut done = 0;
    let mut found = Request::default();
    for _ in 0..batches {
        consume(&request);
        ask(&mut front, &mut request, &mut id, batch);
        serve(&mut back, &mut found);
        done += u64::from(reap(&mut front));
    }
    done
}

/// Prepares a ring that [`front`] and [`back`] then share.
pub fn init(page: &Pages) -> FrontHalf<'_> {
    FrontHalf::init(page.first()).expect("one page")
}

/// The front half, polling: sends whenever `batch` slots are free.
#[inline(never)]
pub fn front(mut front: FrontHalf<'_>, requests: u64, batch: u32, segments: u8) {
    let mut request = prepared(segments);
    let mut id = 0;
    let mut done = 0;
    while done < requests {
        let reaped = reap(&mut front);
        if id < requests && front.free() >= batch {
            consume(&request);
            ask(&mut front, &mut request, &mut id, batch);
        } else if reaped == 0 {
            spin_loop();
        }
        done += u64::from(reaped);
    }
}

/// The back half, polling.
#[inline(never)]
pub fn back(page: &Pages, requests: u64) {
    let mut back = BackHalf::attach(page.first()).expect("one page");
    let mut found = Request::default();
    let mut done = 0;
    while done < requests {
        let served = serve(&mut back, &mut found);
        if served == 0 {
            spin_loop();
        }
        done += u64::from(served);
    }
}
