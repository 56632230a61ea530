// Not a core: does I/O or calls a hypervisor.

//! The step between taking an indirect request and checking it: its pages of segments are copied by grant into private memory,
//! once, as the frontend may change them at any time (XSA-155).

use std::ops::Range;
use std::sync::Arc;

use arrayvec::ArrayVec;
use grant_table::{CopyOp, CopyPtr, GrantTable, SharedSlice};
use ring_abi::DomId;
use ring_abi::blkif::indirect::{SEGMENT, page_bytes};
use ring_abi::blkif::{Indirect, Request};

use crate::guest_data::COPIES;
use crate::request::{RequestTable, Tag};

/// Copies of one frontend's pages of segments.
pub(crate) struct SegmentPages {
    grants: Arc<dyn GrantTable>,
    peer: DomId,
    /// Those of a batch of requests, one behind the other.
    bytes: Vec<u8>,
    /// By the number of the request in the batch.
    copied: Vec<Copied>,
}

/// The segments of one request.
struct Copied {
    bytes: Range<usize>,
    /// A page could not be copied.
    refused: bool,
}

impl SegmentPages {
    /// For the pages of this domain.
    pub(crate) fn new(grants: Arc<dyn GrantTable>, peer: DomId) -> SegmentPages {
        SegmentPages { grants, peer, bytes: Vec::new(), copied: Vec::new() }
    }

    /// Copies the segments of these indirect requests.
    pub(crate) fn fetch(&mut self, requests: &RequestTable, tags: &[Tag]) {
        self.copied.clear();
        let mut end = 0;
        for tag in tags {
            let start = end;
            end += indirect(requests, *tag).map_or(0, |request| usize::from(request.nr_segments) * SEGMENT);
            self.copied.push(Copied { bytes: start..end, refused: false });
        }
        self.bytes.resize(end, 0);
        self.copy(tags.iter().map(|tag| indirect(requests, *tag)));
    }

    /// The segments of the request of this number among those that were fetched last; `None` if the frontend's pages could not be
    /// read.
    pub(crate) fn get(&self, number: usize) -> Option<&[u8]> {
        let Copied { bytes, refused } = self.copied.get(number)?;
        if *refused { None } else { self.bytes.get(bytes.clone()) }
    }

    /// Copies the pages of these requests by as few calls as possible.
    fn copy<'r>(&mut self, wanted: impl Iterator<Item = Option<&'r Indirect>>) {
        let SegmentPages { grants, peer, bytes, copied } = self;
        let mut rest = &mut bytes[..];
        let mut ops: ArrayVec<CopyOp<'_>, COPIES> = ArrayVec::new();
        let mut owners: ArrayVec<usize, COPIES> = ArrayVec::new();
        for (number, request) in wanted.enumerate() {
            let Some(request) = request else { continue };
            for (gref, len) in request.indirect_grefs.iter().zip(page_bytes(request.nr_segments.into())) {
                if ops.is_full() {
                    copy_batch(&**grants, &mut ops, &mut owners, copied);
                }
                let (page, others) = std::mem::take(&mut rest).split_at_mut(len);
                rest = others;
                let source = CopyPtr::Grant { domid: *peer, gref: *gref, offset: 0 };
                ops.push(CopyOp::new(source, CopyPtr::Memory(SharedSlice::from(page)), len as u16));
                owners.push(number);
            }
        }
        copy_batch(&**grants, &mut ops, &mut owners, copied);
    }

    /// Gives back the memory, which no request has now.
    pub(crate) fn give_back_spare(&mut self) {
        self.bytes = Vec::new();
        self.copied = Vec::new();
    }
}

fn indirect(requests: &RequestTable, tag: Tag) -> Option<&Indirect> {
    match requests[tag].request() {
        Request::Indirect(request) => Some(request),
        _ => None,
    }
}

fn copy_batch(
    grants: &dyn GrantTable,
    ops: &mut ArrayVec<CopyOp<'_>, COPIES>,
    owners: &mut ArrayVec<usize, COPIES>,
    copied: &mut [Copied],
) {
    let log = |error: &grant_table::Error| tracing::debug!(%error, "failed to copy pages of segments");
    let tried = ops.is_empty() || grants.copy(ops).inspect_err(log).is_ok();
    for (op, owner) in ops.iter().zip(&*owners) {
        copied[*owner].refused |= !tried || !op.status.is_okay();
    }
    ops.clear();
    owners.clear();
}
