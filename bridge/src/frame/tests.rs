//! Tests of a frame's bytes and of the pins that it holds.

use super::*;
use std::sync::{
    Arc,
    atomic::{AtomicI32, Ordering::Relaxed},
};

struct Owner {
    bytes: Vec<u8>,
    holds: AtomicI32,
}

impl crate::PinOwner for Owner {
    fn hold(&self, _: u32) {
        self.holds.fetch_add(1, Relaxed);
    }
    fn release(&self, _: u32) {
        self.holds.fetch_sub(1, Relaxed);
    }
}

#[allow(unsafe_code)]
fn pinned(owner: &Arc<Owner>) -> Frame {
    let mut frame = Frame::new();
    owner.holds.fetch_add(1, Relaxed);
    frame.pin(Pin::adopt(owner.clone(), 7));
    frame.fill_head(4).copy_from_slice(b"head");
    for chunk in owner.bytes.chunks(100) {
        // SAFETY: the owner keeps its bytes while the pin lives.
        frame.push(unsafe { Fragment::new(chunk.as_ptr(), chunk.len() as u32) }).unwrap();
    }
    frame
}

#[test]
fn each_clone_holds_the_pages_until_dropped() {
    let owner = Arc::new(Owner { bytes: (0..=255).collect(), holds: AtomicI32::new(0) });
    let frame = pinned(&owner);
    let twin = frame.clone();
    assert_eq!(owner.holds.load(Relaxed), 2);
    drop(frame);
    assert_eq!(owner.holds.load(Relaxed), 1);
    assert_eq!(twin.to_vec(), [b"head".as_slice(), &owner.bytes].concat());
    drop(twin);
    assert_eq!((owner.holds.load(Relaxed), Arc::strong_count(&owner)), (0, 1));
}

#[test]
fn range_spans_head_and_fragments() {
    let owner = Arc::new(Owner { bytes: (0..=255).collect(), holds: AtomicI32::new(0) });
    let frame = pinned(&owner);
    let whole = frame.to_vec();
    for (at, len) in [(0, 0), (0, 4), (2, 5), (3, 250), (104, 100), (200, 1000), (999, 1)] {
        let mut got = Vec::new();
        for fragment in frame.range(at, len) {
            let mut part = vec![0; fragment.len()];
            fragment.copy_to(&mut part);
            got.extend(part);
        }
        let end = whole.len().min(at + len);
        assert_eq!(got, whole[at.min(end)..end], "{len} bytes at {at}");
    }
}

#[test]
fn frame_of_any_length_has_all_bytes() {
    let bytes: Vec<u8> = (0..1000).map(|i| i as u8).collect();
    for len in [0, 1, 127, 128, 129, 1000] {
        let frame = Frame::from_slice(&bytes[..len]);
        assert_eq!((frame.len(), frame.is_head_only()), (len, len <= HEAD));
        assert_eq!(frame.clone().to_vec(), bytes[..len]);
        assert_eq!(Frame::from_bytes(bytes[..len].to_vec().into()).to_vec(), bytes[..len]);
    }
}

#[test]
fn push_of_a_twenty_first_fragment_is_refused() {
    let mut frame = Frame::new();
    let fragment = own_fragment(&Bytes::from_static(b"x"));
    assert!((0..MAX_FRAGMENTS).all(|_| frame.push(fragment).is_ok()));
    assert_eq!(frame.push(fragment), Err(TooManyFragments));
    assert_eq!(frame.len(), MAX_FRAGMENTS);
}

#[test]
fn new_pin_removes_fragments_and_new_head_is_zeroed() {
    let mut frame = Frame::from_slice(&[1; 200]);
    let owner = Arc::new(Owner { bytes: vec![], holds: AtomicI32::new(1) });
    frame.pin(Pin::adopt(owner, 0));
    assert_eq!(frame.to_vec(), [1; HEAD]);
    assert_eq!(frame.fill_head(60), [0; 60]);
}
