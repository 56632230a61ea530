//! Attacks with requests whose segments lie in pages of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::attacks::raw;
use crate::{Platform, assert_others_served};
use grant_table::{Access, Shared};
use rand::RngExt;
use ring_abi::blkif::{
    Indirect, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ, OP_WRITE, OP_WRITE_BARRIER, Request, Segment, Status,
    key,
};
use ring_abi::{DomId, GrantRef};
use testkit::random;

const OKAY: Status = Status::OKAY;
const ERROR: Status = Status::ERROR;

pub(crate) fn invalid_indirect_requests_are_answered_with_an_error(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let back = raw.device.end().other_keys(&mut raw.device.store()).unwrap();
    let offered: u16 = back.need(key::FEATURE_MAX_INDIRECT_SEGMENTS).unwrap();
    let hv = raw.device.hv.clone();
    let gref = raw.data.refs()[0];
    let whole = Segment { gref, first_sect: 0, last_sect: 7 };
    let counted = |nr_segments, (request, pages): (Request, Shared)| match request {
        Request::Indirect(one) => (Request::Indirect(Indirect { nr_segments, ..one }), pages),
        other => (other, pages),
    };
    // Revoked when all others are granted, as a reference may be used again.
    let (revoked, to_revoke) = raw.indirect(OP_READ, 9, 0, &[gref; 20]);
    let data_only = hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap();
    let no_page = Indirect {
        indirect_op: OP_READ,
        nr_segments: 20,
        id: 10,
        sector_number: 0,
        handle: 0,
        indirect_grefs: [GrantRef(u32::MAX); 8],
    };
    let bad = |sects: (u8, u8)| {
        let mut segments = vec![whole; 20];
        segments[19] = Segment { gref, first_sect: sects.0, last_sect: sects.1 };
        segments
    };
    let requests = [
        // What is inside: an indirect request, a barrier, a flush, and no operation at all.
        raw.indirect(OP_INDIRECT, 0, 0, &[gref; 20]),
        raw.indirect(OP_WRITE_BARRIER, 1, 0, &[gref; 20]),
        raw.indirect(OP_FLUSH_DISKCACHE, 2, 0, &[gref; 20]),
        raw.indirect(255, 3, 0, &[gref; 20]),
        counted(0, raw.indirect(OP_READ, 4, 0, &[gref; 20])),
        counted(offered + 1, raw.indirect(OP_READ, 5, 0, &[gref; 20])),
        counted(u16::MAX, raw.indirect(OP_READ, 6, 0, &[gref; 20])),
        raw.indirect_of(OP_READ, 7, 0, &bad((5, 4))),
        raw.indirect_of(OP_READ, 8, 0, &bad((0, 8))),
        (revoked, data_only),
        (Request::Indirect(no_page), hv.share(DomId::DOM0, 1, Access::ReadOnly).unwrap()),
        raw.indirect(OP_READ, 11, 1 << 40, &[gref; 20]),
        raw.indirect(OP_READ, 12, u64::MAX - 7, &[gref; 20]),
        // One of the data pages is nobody's.
        raw.indirect(OP_READ, 13, 0, &[gref, GrantRef(u32::MAX), gref]),
        raw.indirect(OP_READ, 14, 0, &[gref; 20]),
    ];
    let (requests, pages): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
    drop(to_revoke);
    raw.send(&requests);
    let responses = raw.receive(requests.len());
    let statuses: Vec<_> = responses.iter().map(|response| response.status).collect();
    assert_eq!(statuses, [&[ERROR; 14][..], &[OKAY]].concat());
    assert_eq!((responses[0].operation, responses[14].operation), (OP_INDIRECT, OP_READ));
    drop(pages);
    assert_others_served(platform);
    platform.assert_unmapped(raw);
}

pub(crate) fn pages_of_segments_revoked_in_mid_fetch_fail_their_request_alone(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let gref = raw.data.refs()[0];
    // Many rounds, so that some are revoked before they are copied and some afterwards.
    for round in 0..200 {
        let (request, pages) = raw.indirect(OP_READ, 2 * round, 0, &[gref; 100]);
        let direct = raw.io(OP_READ, 2 * round + 1, 0, &[1]);
        raw.send(&[request, direct]);
        drop(pages);
        let responses = raw.receive(2);
        assert!([OKAY, ERROR].contains(&responses[0].status));
        assert_eq!(responses[1].status, OKAY);
    }
    platform.assert_unmapped(raw);
}

pub(crate) fn segments_overwritten_while_they_are_fetched_are_all_answered(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let stop = AtomicBool::new(false);
    let gref = raw.data.refs()[0];
    let (request, pages) = raw.indirect(OP_WRITE, 0, 0, &[gref; 200]);
    let memory = [Arc::new(pages)];
    let end = Instant::now() + Duration::from_millis(500);
    std::thread::scope(|scope| {
        // First and last sectors, and references.
        scope.spawn(|| {
            random::overwrite(&memory, 2, &stop, |random, offset| {
                (offset < 1600).then(|| random.random_range(0..13) << 8 | random.random_range(0..9))
            });
        });
        while Instant::now() < end {
            raw.send(std::slice::from_ref(&request));
            raw.receive(1);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_others_served(platform);
    drop(memory);
    platform.assert_unmapped(raw);
}
