//! Batches of grant copies: spans of any length, split where an operation may not go on.
//!
//! An operation of `GNTTABOP_copy` stays inside one granted page at each end. A span may be memory or a list of
//! granted pages; [`Batch::add`] splits it into operations, and [`Batch::run`] tells for each span how it went.

use hypervisor::{Copy, DomId, GrantRef, Hypervisor, PAGE_SIZE, Place, Result};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;

/// Operations that a batch holds without allocating.
pub const INLINE_OPS: usize = 32;

/// Where octets are.
#[derive(Clone, Copy, Debug)]
pub enum Span<'a> {
    /// In memory of ours, or mapped.
    Memory(VolatileSlice<'a>),
    /// In granted pages, one after the other.
    Pages {
        /// Who granted them.
        domid: DomId,
        /// The pages' references.
        refs: &'a [GrantRef],
        /// The first octet, from the start of the first page.
        offset: usize,
    },
}

impl<'a> Span<'a> {
    /// Octets there are at most.
    fn len(&self) -> usize {
        match self {
            Self::Memory(memory) => memory.len(),
            Self::Pages { refs, offset, .. } => (refs.len() * PAGE_SIZE).saturating_sub(*offset),
        }
    }

    /// The place at `at` octets from the start, and how many octets an operation may go on there.
    fn place(&self, at: usize) -> Option<(Place<'a>, usize)> {
        match self {
            Self::Memory(memory) => {
                let rest = memory.offset(at).ok()?;
                // The length of an operation is 16 bits.
                Some((Place::Memory(rest), rest.len().min(usize::from(u16::MAX))))
            }
            Self::Pages { domid, refs, offset } => {
                let at = offset + at;
                let (gref, offset) = (*refs.get(at / PAGE_SIZE)?, at % PAGE_SIZE);
                let place = Place::Grant { domid: *domid, gref, offset: offset as u16 };
                Some((place, PAGE_SIZE - offset))
            }
        }
    }
}

/// Which span of a batch, in the order of their adding.
pub type Ticket = usize;

/// Spans to be copied.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    ops: SmallVec<[Copy<'a>; INLINE_OPS]>,
    /// Where each span's operations end.
    ends: SmallVec<[u32; INLINE_OPS]>,
}

impl<'a> Batch<'a> {
    /// Nothing to copy.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spans that were added.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Operations into which they were split.
    pub fn ops(&self) -> usize {
        self.ops.len()
    }

    /// Adds `len` octets to be copied; `None`, and nothing added, if one of the spans is shorter.
    pub fn add(&mut self, source: Span<'a>, dest: Span<'a>, len: usize) -> Option<Ticket> {
        if source.len() < len || dest.len() < len {
            return None;
        }
        let mut done = 0;
        while done < len {
            let ((from, room_from), (to, room_to)) = (source.place(done)?, dest.place(done)?);
            let step = room_from.min(room_to).min(len - done);
            self.ops.push(Copy::new(from, to, step as u16));
            done += step;
        }
        self.ends.push(self.ops.len() as u32);
        Some(self.ends.len() - 1)
    }

    /// Makes the copies.
    ///
    /// # Errors
    /// As [`Hypervisor::copy`]: only where nothing could be tried.
    pub fn run(&mut self, hypervisor: &dyn Hypervisor) -> Result<()> {
        hypervisor.copy(&mut self.ops)
    }

    /// How a span went: 0, or the first `GNTST_*` below zero of its operations.
    ///
    /// # Panics
    /// If there is no such span.
    pub fn status(&self, ticket: Ticket) -> i16 {
        let start = if ticket == 0 { 0 } else { self.ends[ticket - 1] as usize };
        let ops = &self.ops[start..self.ends[ticket] as usize];
        ops.iter().map(|op| op.status).find(|status| *status != 0).unwrap_or(0)
    }

    /// Forgets all spans.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.ends.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::Access;
    use hypervisor::local::Sandbox;
    use proptest::prelude::*;

    const GUEST: DomId = DomId(1);

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// However spans lie over pages, what arrives is what a plain copy would give, and nothing else changes.
        #[test]
        fn spans_arrive_whole(
            spans in proptest::collection::vec((0usize..9_000, 0usize..9_000, 0usize..12_000, any::<u8>()), 1..8)
        ) {
            let sandbox = Sandbox::new().unwrap();
            let (guest, dom0) = (sandbox.join(GUEST).unwrap(), sandbox.join(DomId::DOM0).unwrap());
            let from = guest.share(DomId::DOM0, 4, Access::ReadOnly).unwrap();
            let to = guest.share(DomId::DOM0, 4, Access::ReadWrite).unwrap();
            let octets: Vec<u8> = (0..4 * PAGE_SIZE).map(|n| (n * 31 / 7) as u8).collect();
            from.slice(0, octets.len()).unwrap().copy_from(&octets[..]);
            let mut expected = vec![0; 4 * PAGE_SIZE];
            let mut memory = octets.clone();
            let memory = VolatileSlice::from(&mut memory[..]);
            let mut batch = Batch::new();
            for (at, dest, len, kind) in spans {
                let source = if kind & 1 == 0 {
                    Span::Pages { domid: GUEST, refs: from.refs(), offset: at }
                } else {
                    Span::Memory(memory.offset(at).unwrap())
                };
                let fits = at + len <= octets.len() && dest + len <= expected.len();
                let dest_span = Span::Pages { domid: GUEST, refs: to.refs(), offset: dest };
                prop_assert_eq!(batch.add(source, dest_span, len).is_some(), fits);
                if fits {
                    expected[dest..dest + len].copy_from_slice(&octets[at..at + len]);
                }
            }
            batch.run(&*dom0).unwrap();
            prop_assert!((0..batch.len()).all(|ticket| batch.status(ticket) == 0));
            let mut arrived = vec![0; expected.len()];
            to.slice(0, arrived.len()).unwrap().copy_to(&mut arrived[..]);
            prop_assert_eq!(arrived, expected);
        }
    }

    #[test]
    fn a_failed_span_fails_alone() {
        let sandbox = Sandbox::new().unwrap();
        let (guest, dom0) = (sandbox.join(GUEST).unwrap(), sandbox.join(DomId::DOM0).unwrap());
        let shared = guest.share(DomId::DOM0, 2, Access::ReadWrite).unwrap();
        let wrong = [shared.refs()[0], GrantRef(1 << 20)];
        let mut memory = vec![0; 3 * PAGE_SIZE];
        let memory = VolatileSlice::from(&mut memory[..]);
        let mut batch = Batch::new();
        let pages = |refs| Span::Pages { domid: GUEST, refs, offset: 10 };
        let good = batch.add(pages(shared.refs()), Span::Memory(memory), 5_000).unwrap();
        let bad = batch.add(pages(&wrong), Span::Memory(memory), 5_000).unwrap();
        let also_good = batch.add(Span::Memory(memory), pages(shared.refs()), 8_000).unwrap();
        assert_eq!(batch.ops(), 6);
        batch.run(&*dom0).unwrap();
        assert_eq!((batch.status(good), batch.status(also_good)), (0, 0));
        assert!(batch.status(bad) < 0);
        batch.clear();
        assert!(batch.is_empty() && batch.add(pages(&[]), Span::Memory(memory), 1).is_none());
    }
}
