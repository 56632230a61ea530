//! Row N3f: a page flipped into a guest, and its return, beside the grant copy of the same bytes.
//!
//! A flip is the whole cycle: the guest gives up a page, dom0 takes it over and transfers it, the guest takes it out of its
//! entry, frees it, and makes the entry accept another. The bytes are in the page already, as where a port reads into it.

use crate::row::{Goal, Row, interleave, median};
use crate::sample::{Sample, settled};
use grant_table::flip::{Receiver, Sender};
use grant_table::{Access, CopyOp, CopyPtr, GrantTable, Shared, SharedSlice};
use hypervisor::local::{Domain, Sandbox};
use ring_abi::{DomId, PAGE_SIZE};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

const GUEST: DomId = DomId(1);
/// Pages of one measurement, and entries of the guest.
const PAGES: usize = 64;
const PAIRS: usize = 201;
/// More than the processor's caches hold.
const COLD_BYTES: usize = 64 << 20;
const PAGES_A_FRAME: [usize; 5] = [1, 2, 4, 8, 16];

/// A guest and dom0, with entries for flips and granted pages for copies.
struct Ends {
    sender: Sender,
    receiver: Receiver,
    dom0: Arc<Domain>,
    granted: Shared,
    source: Vec<u8>,
    cold: Vec<u8>,
    _sandbox: Sandbox,
}

impl Ends {
    fn new() -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let sandbox = Sandbox::new().map_err(|e| text(&e))?;
        let guest = sandbox.join(GUEST).map_err(|e| text(&e))?;
        let dom0 = sandbox.join(DomId::DOM0).map_err(|e| text(&e))?;
        let granted = guest.share(DomId::DOM0, PAGES, Access::ReadWrite).map_err(|e| text(&e))?;
        let receiver = Receiver::new(guest, DomId::DOM0, PAGES).map_err(|e| text(&e))?;
        let sender = Sender::new(dom0.clone(), GUEST);
        let source = vec![7; PAGES * PAGE_SIZE];
        let cold = vec![1; COLD_BYTES];
        Ok(Self { sender, receiver, dom0, granted, source, cold, _sandbox: sandbox })
    }

    /// Drives what is measured out of the processor's caches.
    fn evict(&mut self) {
        self.cold.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
    }

    /// Nanoseconds for each page of frames of `pages` pages that are flipped.
    fn flip(&mut self, pages: usize, is_cold: bool) -> f64 {
        if is_cold {
            self.evict();
        }
        let start = Instant::now();
        for first in (0..PAGES).step_by(pages) {
            let available = self.sender.refill(pages, PAGES).expect("dom0 takes pages over");
            assert!(available >= pages, "the guest gives up a page for every entry");
            for entry in first..first + pages {
                let page = self.sender.page().expect("available");
                self.sender.add(page, self.receiver.gref(entry));
            }
            self.sender.flush(|_, status| assert!(status.is_okay())).expect("dom0 transfers pages");
            for entry in first..first + pages {
                drop(self.receiver.take(entry).expect("the guest takes pages"));
            }
        }
        self.receiver.renew(|_, _| {}).expect("the guest gives up pages");
        start.elapsed().as_nanos() as f64 / PAGES as f64
    }

    /// Nanoseconds for each part of `len` bytes of frames of `pages` parts that are copied into granted pages.
    fn copy(&mut self, pages: usize, len: usize, is_cold: bool) -> f64 {
        if is_cold {
            self.evict();
        }
        let source = SharedSlice::from(&mut self.source[..]);
        let op = |page: usize| {
            let from = source.subslice(page * PAGE_SIZE, len).expect("inside");
            let dest = CopyPtr::Grant { domid: GUEST, gref: self.granted.refs()[page], offset: 0 };
            CopyOp::new(CopyPtr::Memory(from), dest, len as u16)
        };
        let mut ops: Vec<CopyOp<'_>> = (0..PAGES).map(op).collect();
        let start = Instant::now();
        for frame in ops.chunks_mut(pages) {
            self.dom0.copy(frame).expect("dom0 copies");
        }
        let elapsed = start.elapsed();
        assert!(ops.iter().all(|op| op.status.is_okay()));
        elapsed.as_nanos() as f64 / PAGES as f64
    }
}

fn case(pages: usize, is_cold: bool) -> String {
    format!("{pages} pages a frame, {}", if is_cold { "cold" } else { "warm" })
}

fn cases() -> impl Iterator<Item = (usize, bool)> {
    PAGES_A_FRAME.into_iter().flat_map(|pages| [(pages, false), (pages, true)])
}

/// Bytes of a part of a frame from which on copying it costs as much as flipping a page, of those that are multiples of 256;
/// a page and more if there are none.
fn crossing(ends: &mut Ends) -> usize {
    let flip = median((0..PAIRS).map(|_| ends.flip(1, false)));
    let costs_more = |len: &usize| median((0..PAIRS).map(|_| ends.copy(1, *len, false))) >= flip;
    (256..=PAGE_SIZE).step_by(256).find(costs_more).unwrap_or(2 * PAGE_SIZE)
}

/// Our side of N3f.
///
/// # Errors
/// The machine does not come up.
pub fn n3f_once() -> Result<Sample, String> {
    let mut ends = Ends::new()?;
    let values =
        cases().map(|(pages, is_cold)| (case(pages, is_cold), settled(PAIRS, || ends.flip(pages, is_cold))));
    Ok(Sample::new("ns a page", values))
}

/// Row N3f, the case that is furthest from its goal; the others are named.
///
/// # Errors
/// As [`n3f_once`].
pub fn n3f() -> Result<Row, String> {
    let ends = RefCell::new(Ends::new()?);
    let mut rows = Vec::new();
    let mut all = String::new();
    for (pages, is_cold) in cases() {
        let flip = || ends.borrow_mut().flip(pages, is_cold);
        let copy = || ends.borrow_mut().copy(pages, PAGE_SIZE, is_cold);
        let pairs = if is_cold { PAIRS / 8 } else { PAIRS };
        let what = format!("page flipped, {}, beside its grant copy", case(pages, is_cold));
        let row = Row::new("N3f", what, "ns", Goal::AtMost(1.0), &interleave(pairs, flip, copy));
        all += &format!("; {}: {:.0} to {:.0}", case(pages, is_cold), row.ours, row.peer.unwrap_or(f64::NAN));
        rows.push(row);
    }
    let crossing = crossing(&mut ends.borrow_mut());
    let ratio = |row: &Row| row.ratio.unwrap_or(f64::INFINITY);
    let worst = rows.into_iter().max_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    let worst = worst.ok_or("no case")?;
    let what = format!("{} (strictest{all}; warm, the costs cross at {crossing} bytes)", worst.what);
    Ok(Row { what, ..worst })
}
