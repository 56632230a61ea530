//! Runs the cores of both rings against a script of bytes, as a hostile frontend could write them. Used by the fuzz
//! targets and, with random scripts, by the property tests.

use netback::assemble::Packet;
use netback::rx::{FrameInfo, Placement, Rx};
use netback::tx::Tx;
use ring_abi::PAGE_SIZE;
use ring_abi::netif::{RxFlags, RxSlot, SLOTS_FATAL, SLOTS_MIN, Status};
use ring_abi::testing::{Pages, REQ_PROD, RSP_PROD, Script};
use std::sync::atomic::Ordering::Relaxed;

/// Transmit ring: any requests. Each request taken is answered once, and every packet is valid.
pub(crate) fn tx(script: &[u8]) {
    let page = Pages::new(1);
    let mut tx: Tx<Pages, Pages> = Tx::attach(page.clone(), 16).expect("a page holds a ring");
    let mut script = Script::new(script);
    let mut produced = 0u32;
    let mut answered = 0u32;
    while !script.is_over() {
        match script.byte() % 8 {
            0 => page.word(REQ_PROD).store(script.word(), Relaxed),
            1..=4 => write_request(&page, produced, &mut script),
            _ => {
                page.word(REQ_PROD).store(produced, Relaxed);
                match poll(&mut tx, script.byte()) {
                    Some(count) => answered = answered.wrapping_add(count),
                    None => return,
                }
                assert_eq!(page.word(RSP_PROD).load(Relaxed), answered, "published");
                // At most one incomplete packet is unanswered.
                assert!(tx.unanswered() <= SLOTS_FATAL as u32 + 4);
                continue;
            }
        }
        produced = produced.wrapping_add(1);
    }
}

/// Writes a request of likely and unlikely values in equal parts: random values alone rarely make a packet of several
/// slots.
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

/// Takes packets and answers them all; returns the number of responses, or `None` after a fault.
fn poll(tx: &mut Tx<Pages, Pages>, limit: u8) -> Option<u32> {
    let count = tx.poll(usize::from(limit % 20)).ok()?.len();
    let mut responses = 0;
    for place in 0..count {
        let packet = tx.packet(place);
        check(packet);
        responses += packet.ids().len() as u32 + u32::from(packet.extras());
        let status = if packet.refusal().is_some() { Status::ERROR } else { Status::OKAY };
        if place % 3 == 0 {
            let ids = packet.ids().to_vec();
            let extras = packet.extras();
            tx.respond_later(&ids, extras, status);
        } else {
            tx.respond(place, status);
        }
    }
    let _ = tx.commit();
    Some(responses)
}

fn check(packet: &Packet) {
    assert!(!packet.ids().is_empty() && packet.ids().len() <= SLOTS_FATAL);
    if packet.refusal().is_some() {
        return;
    }
    assert!(packet.fragments().len() <= SLOTS_MIN && packet.size() >= 14);
    let sum: usize = packet.fragments().iter().map(|fragment| usize::from(fragment.size)).sum();
    assert_eq!(sum, packet.size(), "the fragments are the packet");
    assert!(packet.fragments().iter().all(|p| usize::from(p.offset) + usize::from(p.size) <= PAGE_SIZE));
    assert!(packet.gso().is_none_or(|(_, size)| size > 0));
}

/// Receive ring: any frames into any buffers. Pages are filled in the order posted, each response is in its request's
/// slot, and a failed frame has an error status.
pub(crate) fn rx(script: &[u8]) {
    let page = Pages::new(1);
    let mut rx: Rx<Pages, Pages> = Rx::attach(page.clone()).expect("a page holds a ring");
    let mut script = Script::new(script);
    let mut produced = 0u32;
    let mut responses = 0u32;
    let mut ids = Vec::new();
    while !script.is_over() {
        match script.byte() % 8 {
            0 if script.byte() == 0 => {
                page.word(REQ_PROD).store(script.word(), Relaxed);
                let _ = rx.posted();
                if rx.place(FrameInfo { len: 60, ..FrameInfo::default() }, &mut Vec::new()).is_err() {
                    return;
                }
                // The random producer index was possible: the slots up to it were never written.
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

/// Places a few frames, fails some, and checks the responses; returns their number.
fn round(rx: &mut Rx<Pages, Pages>, page: &Pages, ids: &[u16], first: u32, script: &mut Script<'_>) -> u32 {
    let mut next = first;
    let mut expected = Vec::new();
    for number in 0..script.byte() % 8 {
        let len = usize::from(script.word() as u16).max(14);
        let len = if script.byte() & 1 == 0 { len } else { len % 2000 + 14 };
        let gso = (script.byte() & 3 == 0).then_some((1, 1448));
        let shape = FrameInfo { len, flags: RxFlags::DATA_VALIDATED, gso };
        let mut fills = Vec::new();
        match rx.place(shape, &mut fills).expect("the producer index is valid") {
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
    let mut index = first;
    let mut len = 0;
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
