//! Drives the cores of both rings by a script of bytes that a hostile guest could have written. Run by the fuzz
//! targets and, with random scripts, by the crate's tests.

use netback::assemble::Packet;
use netback::rx::{FrameInfo, Placement, Rx};
use netback::tx::Tx;
use ring_abi::PAGE_SIZE;
use ring_abi::netif::{RxFlags, RxSlot, SLOTS_FATAL, SLOTS_MIN, Status};
use ring_abi::testing::{Pages, REQ_PROD, RSP_PROD, Script};
use std::sync::atomic::Ordering::Relaxed;

/// Any requests: every one that was taken is answered once, and what comes out keeps its promises.
pub(crate) fn tx(script: &[u8]) {
    let page = Pages::new(1);
    let mut tx: Tx<Pages, Pages> = Tx::attach(page.clone(), 16).expect("a page holds a ring");
    let mut script = Script::new(script);
    let (mut produced, mut answers) = (0u32, 0u32);
    while !script.is_over() {
        match script.byte() % 8 {
            0 => page.word(REQ_PROD).store(script.word(), Relaxed),
            1..=4 => write_request(&page, produced, &mut script),
            _ => {
                page.word(REQ_PROD).store(produced, Relaxed);
                match poll(&mut tx, script.byte()) {
                    Some(answered) => answers = answers.wrapping_add(answered),
                    None => return,
                }
                assert_eq!(page.word(RSP_PROD).load(Relaxed), answers, "published");
                // The rest is one packet that is not complete.
                assert!(tx.unanswered() <= SLOTS_FATAL as u32 + 4);
                continue;
            }
        }
        produced = produced.wrapping_add(1);
    }
}

/// Likely and unlikely values in equal parts: purely random ones hardly ever make a packet of several slots.
fn write_request(page: &Pages, index: u32, script: &mut Script<'_>) {
    let kind = script.byte();
    let flags = u32::from(script.byte() & 0x1f);
    let size = if kind & 1 == 0 { u32::from(script.byte()) * 8 } else { script.word() & 0xffff };
    let offset = if kind & 2 == 0 { 0 } else { script.word() & 0xffff };
    let extra = kind & 0x1c == 4;
    let first = if extra { script.word() & 0x0003_0107 } else { script.word() };
    page.slot_word(12, index, 0).store(first, Relaxed);
    page.slot_word(12, index, 1).store(if extra { 1 } else { offset | flags << 16 }, Relaxed);
    page.slot_word(12, index, 2).store(index & 0xffff | size << 16, Relaxed);
}

/// One round, all of it answered; how many answers, or `None` when the guest was cut off.
fn poll(tx: &mut Tx<Pages, Pages>, limit: u8) -> Option<u32> {
    let count = tx.poll(usize::from(limit % 20)).ok()?.len();
    let mut answers = 0;
    for place in 0..count {
        let packet = tx.packet(place);
        check(packet);
        answers += packet.ids().len() as u32 + u32::from(packet.extras());
        let status = if packet.refusal().is_some() { Status::ERROR } else { Status::OKAY };
        if place % 3 == 0 {
            let (ids, extras) = (packet.ids().to_vec(), packet.extras());
            tx.respond_later(&ids, extras, status);
        } else {
            tx.respond(place, status);
        }
    }
    let _ = tx.commit();
    Some(answers)
}

fn check(packet: &Packet) {
    assert!(!packet.ids().is_empty() && packet.ids().len() <= SLOTS_FATAL);
    if packet.refusal().is_some() {
        return;
    }
    assert!(packet.fragments().len() <= SLOTS_MIN && packet.size() >= 14);
    let sum: usize = packet.fragments().iter().map(|part| usize::from(part.size)).sum();
    assert_eq!(sum, packet.size(), "the parts are the packet");
    assert!(packet.fragments().iter().all(|p| usize::from(p.offset) + usize::from(p.size) <= PAGE_SIZE));
    assert!(packet.gso().is_none_or(|(_, size)| size > 0));
}

/// Any frames to any buffers: pages are filled in the order posted, every response sits in its request's slot, and
/// a frame that failed says so.
pub(crate) fn rx(script: &[u8]) {
    let page = Pages::new(1);
    let mut rx: Rx<Pages, Pages> = Rx::attach(page.clone()).expect("a page holds a ring");
    let mut script = Script::new(script);
    let (mut produced, mut responses) = (0u32, 0u32);
    let mut ids = Vec::new();
    while !script.is_over() {
        match script.byte() % 8 {
            0 if script.byte() == 0 => {
                page.word(REQ_PROD).store(script.word(), Relaxed);
                let _ = rx.posted();
                if rx.place(FrameInfo { len: 60, ..FrameInfo::default() }, &mut Vec::new()).is_err() {
                    return;
                }
                // It happened to be a producer that is possible: what follows is not what we posted.
                return;
            }
            0..=4 if produced.wrapping_sub(responses) < 256 => {
                let id = script.word() as u16;
                ids.push(id);
                page.slot_word(8, produced, 0).store(id.into(), Relaxed);
                page.slot_word(8, produced, 1).store(produced + 8, Relaxed);
                produced = produced.wrapping_add(1);
            }
            _ => {
                page.word(REQ_PROD).store(produced, Relaxed);
                responses += round(&mut rx, &page, &ids, responses, &mut script);
                assert_eq!(page.word(RSP_PROD).load(Relaxed), responses);
            }
        }
    }
}

/// Places a few frames, fails some, and checks what is published; how many responses that is.
fn round(rx: &mut Rx<Pages, Pages>, page: &Pages, ids: &[u16], first: u32, script: &mut Script<'_>) -> u32 {
    let mut next = first;
    let mut expected = Vec::new();
    for number in 0..script.byte() % 8 {
        let len = usize::from(script.word() as u16).max(14);
        let len = if script.byte() & 1 == 0 { len } else { len % 2000 + 14 };
        let gso = (script.byte() & 3 == 0).then_some((1, 1448));
        let shape = FrameInfo { len, flags: RxFlags::DATA_VALIDATED, gso };
        let mut fills = Vec::new();
        match rx.place(shape, &mut fills).expect("the producer is honest") {
            Placement::Wait | Placement::TooLong => assert!(fills.is_empty()),
            Placement::Frame(place) => {
                assert_eq!(place, expected.len(), "frames are numbered in order");
                assert_eq!(fills.iter().map(|fill| usize::from(fill.len)).sum::<usize>(), len);
                assert!(fills.iter().all(|f| usize::from(f.offset) + usize::from(f.len) <= PAGE_SIZE));
                let failed = number % 3 == 2;
                if failed {
                    rx.fail(place);
                }
                expected.push((next, shape, failed));
                next += shape.slots() as u32;
            }
        }
    }
    rx.finish();
    let _ = rx.commit();
    for (first, shape, failed) in expected {
        check_responses(page, ids, first, shape, failed);
    }
    next - first
}

fn check_responses(page: &Pages, ids: &[u16], first: u32, shape: FrameInfo, failed: bool) {
    let slot = |index| RxSlot([0, 1].map(|word| page.slot_word(8, index, word).load(Relaxed)));
    let (mut index, mut len) = (first, 0);
    loop {
        let response = slot(index).response();
        assert_eq!(response.id, ids[index as usize], "in its request's slot");
        assert_eq!(response.status < 0, failed);
        len += usize::from(response.status.max(0) as u16);
        if response.flags.contains(RxFlags::EXTRA_INFO) {
            assert!(index == first && shape.gso.is_some());
            index += 1;
        }
        index += 1;
        if !response.flags.contains(RxFlags::MORE_DATA) {
            break;
        }
    }
    assert_eq!(index - first, shape.slots() as u32);
    assert!(failed || len == shape.len);
}
