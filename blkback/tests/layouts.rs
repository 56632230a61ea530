//! Both wire layouts carry data to the disk and back, by frontends made by hand: 32-bit guests speak another than we.
//!
//! `layouts xen::` does it in a guest of a real Xen host (`tests/xen/run vbd-32`): `XPV_VBD` names the device,
//! `XPV_CONTENT` a file to be written to it, which the scenario then finds in the image.

mod common;

use std::sync::Arc;

use common::raw::{Raw, Seat};
use common::{GUEST, Machine, XVDA, pattern};
use hypervisor::{Hypervisor, PAGE_SIZE};
use ring_abi::blkif::{Io, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, Request, Response, Segment, Status};
use ring_abi::blkif::{X86_32, X86_64};
use ring_abi::ring::Protocol;
use xenstore::XenbusState;
use xenstore::xenbus::Device;

/// Bytes of a full request, of [`PAGES`] pages.
const FULL: usize = PAGES * PAGE_SIZE;
const PAGES: usize = 11;

/// Writes `content` from the disk's start on and reads it back, in requests of every size.
fn carry<P: Protocol<Request = Request, Response = Response>>(seat: Seat, protocol: &str, content: &[u8]) {
    let mut raw: Raw<P> = Raw::connect(seat, protocol);
    let sector = |piece: usize| (piece * FULL / 512) as u64;
    for (number, piece) in content.chunks(FULL).enumerate() {
        raw.data.slice(0, piece.len()).unwrap().copy_from(piece);
        let pages: Vec<_> = (0..piece.len().div_ceil(PAGE_SIZE)).collect();
        // Ids of all 64 bits, which lie elsewhere in the other layout.
        let write = raw.io(OP_WRITE, !(number as u64), sector(number), &pages);
        raw.send(&[write]);
        assert_eq!(outcome(&raw.receive(1)), [(!(number as u64), OP_WRITE, Status::OKAY)]);
    }
    let flush = raw.io(OP_FLUSH_DISKCACHE, 1 << 40, 0, &[]);
    raw.send(&[flush]);
    assert_eq!(outcome(&raw.receive(1)), [(1 << 40, OP_FLUSH_DISKCACHE, Status::OKAY)]);
    for (number, piece) in content.chunks(FULL).enumerate() {
        let count = piece.len().div_ceil(PAGE_SIZE);
        let reads: Vec<_> =
            (0..count).map(|p| raw.io(OP_READ, p as u64, sector(number) + 8 * p as u64, &[p])).collect();
        raw.send(&reads);
        assert!(raw.receive(count).iter().all(|answer| answer.status == Status::OKAY));
        assert!(bytes(&raw, 0, piece.len()) == piece, "piece {number}");
    }
    parts_of_pages(&mut raw, content);
    raw.seat.set("state", 6);
    raw.seat.await_back(XenbusState::Closed);
}

/// Sectors 3 to 5 of one page and the last of another.
fn parts_of_pages<P: Protocol<Request = Request, Response = Response>>(raw: &mut Raw<P>, content: &[u8]) {
    let segment =
        |page: usize, first_sect, last_sect| Segment { gref: raw.data.refs()[page], first_sect, last_sect };
    let segments = [segment(0, 3, 5), segment(1, 7, 7)].into_iter().collect();
    let request = Io { operation: OP_READ, handle: 0, id: 7, sector_number: 9, nr_segments: 2, segments };
    raw.send(&[Request::Io(request)]);
    assert_eq!(outcome(&raw.receive(1)), [(7, OP_READ, Status::OKAY)]);
    assert!(bytes(raw, 3 * 512, 3 * 512) == content[9 * 512..12 * 512]);
    assert!(bytes(raw, PAGE_SIZE + 7 * 512, 512) == content[12 * 512..13 * 512]);
}

fn bytes<P>(raw: &Raw<P>, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    raw.data.slice(offset, len).unwrap().copy_to(&mut bytes[..]);
    bytes
}

fn outcome(answers: &[Response]) -> Vec<(u64, u8, Status)> {
    answers.iter().map(|a| (a.id, a.operation, a.status)).collect()
}

mod local {
    use super::*;

    fn carried<P: Protocol<Request = Request, Response = Response>>(protocol: &str) {
        let machine = Machine::new();
        let _back = machine.back();
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(8 << 20).unwrap();
        let path = image.path().to_str().unwrap();
        let device = machine.attach(GUEST, XVDA, &[("params", path)]);
        // Three times round the ring, and no whole request at the end.
        let content = pattern(32, 100 * FULL + 3 * PAGE_SIZE);
        carry::<P>(Seat { hv: machine.domain(GUEST), device, persistent: false }, protocol, &content);
        assert!(std::fs::read(image.path()).unwrap()[..content.len()] == content);
    }

    #[test]
    fn the_64_bit_layout_carries_data() {
        carried::<X86_64>("x86_64-abi");
    }

    #[test]
    fn the_32_bit_layout_carries_data() {
        carried::<X86_32>("x86_32-abi");
    }
}

mod xen {
    use super::*;

    #[test]
    fn the_32_bit_layout_carries_data() {
        let (Ok(id), Ok(content)) = (std::env::var("XPV_VBD"), std::env::var("XPV_CONTENT")) else {
            println!("skipped: not on this machine");
            return;
        };
        let hv: Arc<dyn Hypervisor> = Arc::new(hypervisor::xen::Xen::open().expect("the device nodes"));
        let domid = hv.domid();
        let device = Device::new("vbd", domid, id.parse().expect("a device's number"));
        carry::<X86_32>(
            Seat { hv, device, persistent: false },
            "x86_32-abi",
            &std::fs::read(content).expect("the content"),
        );
    }
}
