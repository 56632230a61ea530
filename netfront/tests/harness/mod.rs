//! Drives the cores of both rings by a script of bytes that a hostile backend could have written. Run by the fuzz
//! targets and, with random scripts, by the crate's tests.
#![allow(unsafe_code)] // Ring memory on the heap.

use netfront::rx::{Packet, Rx};
use netfront::tx::{Fragment, Tx};
use ring_abi::netif::TxFlags;
use ring_abi::shm::{HEADER_LEN, Memory};
use ring_abi::{GrantRef, PAGE_SIZE};
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const WORDS: usize = PAGE_SIZE / 4;
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 2;

/// A ring's page, shared between core and script.
#[derive(Clone, Debug)]
struct Page(Arc<[AtomicU32; WORDS]>);

// SAFETY: a page of atomics, alive as long as the value; 8-aligned, since an allocation of this size is.
unsafe impl Memory for Page {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }
    fn len(&self) -> usize {
        PAGE_SIZE
    }
}

impl Page {
    fn new() -> Self {
        Self(Arc::new(std::array::from_fn(|_| AtomicU32::new(0))))
    }
    fn word(&self, at: usize) -> &AtomicU32 {
        &self.0[at % WORDS]
    }
    fn slot(&self, bytes: usize, index: u32, word: usize) -> &AtomicU32 {
        &self.0[(HEADER_LEN + (index as usize % 256) * bytes) / 4 + word]
    }
}

/// Bytes of a script, zeros after its end.
struct Script<'a>(std::slice::Iter<'a, u8>);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }
    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }
    fn is_over(&self) -> bool {
        self.0.len() == 0
    }
}

/// Any responses: a buffer never has two owners and none is lost.
pub(crate) fn tx(script: &[u8]) {
    let page = Page::new();
    let mut tx = Tx::init(page.clone()).expect("a page holds a ring");
    let mut script = Script(script.iter());
    let mut given = BTreeSet::new();
    let mut responses = 0u32;
    while !script.is_over() {
        match script.byte() % 8 {
            0..=3 => send(&mut tx, &mut given, script.byte()),
            4 => {
                let _ = tx.commit();
            }
            5 => page.word(RSP_PROD).store(script.word(), Relaxed),
            _ => {
                let lie = script.byte() < 4;
                let id = if lie { script.word() as u16 } else { *given.first().unwrap_or(&0) };
                let status = u32::from(script.byte() % 4).wrapping_sub(2) << 16;
                page.slot(12, responses, 0).store(u32::from(id) | status, Relaxed);
                responses = responses.wrapping_add(1);
                page.word(RSP_PROD).store(responses, Relaxed);
                let before = tx.in_flight();
                match tx.reap() {
                    Err(_) => return,
                    Ok(None) => {}
                    Ok(Some(_)) => {
                        assert!(given.remove(&id), "a buffer that the backend had");
                        assert_eq!(tx.in_flight() + 1, before);
                    }
                }
            }
        }
        assert_eq!(tx.in_flight(), given.len(), "every buffer is accounted for");
    }
}

fn send(tx: &mut Tx<Page>, given: &mut BTreeSet<u16>, shape: u8) {
    let count = usize::from(shape % 4) + 1;
    if tx.available() < count {
        return;
    }
    let fragment = |buffer| Fragment { buffer, gref: GrantRef(9), offset: 0, size: 100 };
    let fragments: Vec<Fragment> =
        (0..count).map(|_| fragment(tx.reserve().expect("there is room"))).collect();
    if tx.send(&fragments, TxFlags::empty(), (shape & 16 != 0).then_some((1, 1000))) {
        for fragment in fragments {
            assert!(given.insert(fragment.buffer), "a buffer has one owner");
        }
    } else {
        fragments.iter().for_each(|fragment| tx.cancel(fragment.buffer));
    }
}

/// Any responses: pieces lie in their pages, and every buffer comes back once.
pub(crate) fn rx(script: &[u8]) {
    let page = Page::new();
    let mut rx = Rx::init(page.clone()).expect("a page holds a ring");
    (0..256).for_each(|buffer| rx.post(buffer, GrantRef(u32::from(buffer) + 8)));
    let _ = rx.commit();
    let mut script = Script(script.iter());
    let (mut packet, mut responses) = (Packet::default(), 0u32);
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

fn write_response(page: &Page, index: u32, kind: u8, script: &mut Script<'_>) {
    // The id that was posted there, most of the time.
    let posted = page.slot(8, index, 0).load(Relaxed) & 0xffff;
    let id = if kind < 4 { script.word() & 0xffff } else { posted };
    let offset = if kind & 3 == 0 { script.word() & 0xffff } else { 0 };
    let status = if kind & 4 == 0 { script.word() & 0xffff } else { u32::from(script.byte()) * 16 };
    page.slot(8, index, 0).store(id | offset << 16, Relaxed);
    page.slot(8, index, 1).store(u32::from(script.byte() & 15) | status << 16, Relaxed);
}

fn take(rx: &mut Rx<Page>, packet: &Packet) {
    let mut seen = BTreeSet::new();
    for buffer in packet.buffers() {
        assert!(seen.insert(*buffer) && !rx.is_posted(*buffer), "the buffer is ours alone");
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
