//! Runs the cores of both rings against a script of bytes, as a hostile backend could write them. Used by the fuzz
//! targets and, with random scripts, by the property tests.

use netfront::rx::{Packet, Rx};
use netfront::tx::{Fragment, Tx};
use ring_abi::netif::TxFlags;
use ring_abi::testing::{Pages, REQ_PROD, RSP_PROD, Script};
use ring_abi::{GrantRef, PAGE_SIZE};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

/// Transmit ring: any responses. A buffer never has two owners, and none is lost.
pub(crate) fn tx(script: &[u8]) {
    let page = Pages::new(1);
    let mut tx = Tx::init(page.clone()).expect("a page holds a ring");
    let mut script = Script::new(script);
    let mut in_flight = BTreeSet::new();
    let mut responses = 0u32;
    while !script.is_over() {
        match script.byte() % 8 {
            0..=3 => send(&mut tx, &mut in_flight, script.byte()),
            4 => {
                let _ = tx.commit();
            }
            5 => page.word(RSP_PROD).store(script.word(), Relaxed),
            _ => {
                let is_random = script.byte() < 4;
                let id = if is_random { script.word() as u16 } else { *in_flight.first().unwrap_or(&0) };
                let status = u32::from(script.byte() % 4).wrapping_sub(2) << 16;
                page.slot_word(12, responses, 0).store(u32::from(id) | status, Relaxed);
                responses = responses.wrapping_add(1);
                page.word(RSP_PROD).store(responses, Relaxed);
                let before = tx.in_flight();
                match tx.reap() {
                    Err(_) => return,
                    Ok(None) => {}
                    Ok(Some(_)) => {
                        assert!(in_flight.remove(&id), "the buffer was in flight");
                        assert_eq!(tx.in_flight() + 1, before);
                    }
                }
            }
        }
        assert_eq!(tx.in_flight(), in_flight.len(), "every buffer is accounted for");
    }
}

fn send(tx: &mut Tx<Pages>, in_flight: &mut BTreeSet<u16>, shape: u8) {
    let count = usize::from(shape % 4) + 1;
    if tx.available() < count {
        return;
    }
    let fragment = |buffer| Fragment { buffer, gref: GrantRef(9), offset: 0, size: 100 };
    let fragments: Vec<Fragment> =
        (0..count).map(|_| fragment(tx.reserve().expect("slots are free"))).collect();
    if tx.send(&fragments, TxFlags::empty(), (shape & 16 != 0).then_some((1, 1000))) {
        for fragment in fragments {
            assert!(in_flight.insert(fragment.buffer), "a buffer has one owner");
        }
    } else {
        fragments.iter().for_each(|fragment| tx.cancel(fragment.buffer));
    }
}

/// Receive ring: any responses. Fragments are within their pages, and every buffer is returned once.
pub(crate) fn rx(script: &[u8]) {
    let page = Pages::new(1);
    let mut rx = Rx::init(page.clone()).expect("a page holds a ring");
    (0..256).for_each(|buffer| rx.post(buffer, GrantRef(u32::from(buffer) + 8)));
    let _ = rx.commit();
    let mut script = Script::new(script);
    let mut packet = Packet::default();
    let mut responses = 0u32;
    while !script.is_over() {
        let kind = script.byte();
        if kind == 0 {
            page.word(RSP_PROD).store(script.word(), Relaxed);
        } else if page.word(REQ_PROD).load(Relaxed) != responses {
            write_response(&page, responses, kind, &mut script);
            responses = responses.wrapping_add(1);
            page.word(RSP_PROD).store(responses, Relaxed);
        }
        match rx.poll(&mut packet) {
            Err(_) => return,
            Ok(false) => {}
            Ok(true) => take(&mut rx, &packet),
        }
    }
}

fn write_response(page: &Pages, index: u32, kind: u8, script: &mut Script<'_>) {
    // Mostly the id that was posted in this slot.
    let posted = page.slot_word(8, index, 0).load(Relaxed) & 0xffff;
    let id = if kind < 4 { script.word() & 0xffff } else { posted };
    let offset = if kind & 3 == 0 { script.word() & 0xffff } else { 0 };
    let status = if kind & 4 == 0 { script.word() & 0xffff } else { u32::from(script.byte()) * 16 };
    page.slot_word(8, index, 0).store(id | offset << 16, Relaxed);
    page.slot_word(8, index, 1).store(u32::from(script.byte() & 15) | status << 16, Relaxed);
}

fn take(rx: &mut Rx<Pages>, packet: &Packet) {
    let mut seen = BTreeSet::new();
    for buffer in packet.buffers() {
        assert!(seen.insert(*buffer) && !rx.is_posted(*buffer), "the buffer has one owner");
    }
    for fragment in packet.fragments() {
        assert!(seen.contains(&fragment.buffer));
        assert!(usize::from(fragment.offset) + usize::from(fragment.len) <= PAGE_SIZE);
    }
    if packet.drop_reason().is_none() {
        let sum: usize = packet.fragments().iter().map(|fragment| usize::from(fragment.len)).sum();
        assert_eq!(sum, packet.size());
        assert!((14..=65_535).contains(&sum));
    }
    for buffer in packet.buffers() {
        rx.post(*buffer, GrantRef(u32::from(*buffer) + 8));
    }
    let _ = rx.commit();
}
