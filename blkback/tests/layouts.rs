//! Data written and read over both wire layouts, by frontends whose requests the test builds: 32-bit guests use
//! another layout than the backend.
//!
//! `layouts xen::` runs in a guest of a real Xen host (`tests/xen/run vbd-32`; built with `--cfg xen_host`): `XPV_VBD` is
//! the device's number, `XPV_CONTENT` the path of a file to write to it, which the scenario compares with the image.

use ring_abi::PAGE_SIZE;
use ring_abi::blkif::{Io, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, Request, Response, Segment, Status};
use ring_abi::blkif::{X86_32, X86_64, key};
use ring_abi::ring::Protocol;
use testkit::FrontendDevice;
use testkit::block::RawFrontend;
use xenbus::XenbusState;

/// Bytes of a full request, of [`PAGES`] pages.
const FULL: usize = PAGES * PAGE_SIZE;
const PAGES: usize = 11;

/// Writes `content` from the disk's start on and reads it back, in requests of every size.
fn write_and_read<P: Protocol<Request = Request, Response = Response>>(
    device: FrontendDevice,
    protocol: &str,
    content: &[u8],
) {
    let mut raw: RawFrontend<P> = RawFrontend::connect(device, protocol, false);
    let sector = |chunk: usize| (chunk * FULL / 512) as u64;
    for (number, chunk) in content.chunks(FULL).enumerate() {
        raw.data.slice(0, chunk.len()).unwrap().copy_from(chunk);
        let pages: Vec<_> = (0..chunk.len().div_ceil(PAGE_SIZE)).collect();
        // Ids of all 64 bits, whose offset differs between the layouts.
        let write = raw.io(OP_WRITE, !(number as u64), sector(number), &pages);
        raw.send(&[write]);
        assert_eq!(outcome(&raw.receive(1)), [(!(number as u64), OP_WRITE, Status::OKAY)]);
    }
    let flush = raw.io(OP_FLUSH_DISKCACHE, 1 << 40, 0, &[]);
    raw.send(&[flush]);
    assert_eq!(outcome(&raw.receive(1)), [(1 << 40, OP_FLUSH_DISKCACHE, Status::OKAY)]);
    for (number, chunk) in content.chunks(FULL).enumerate() {
        let count = chunk.len().div_ceil(PAGE_SIZE);
        let reads: Vec<_> =
            (0..count).map(|p| raw.io(OP_READ, p as u64, sector(number) + 8 * p as u64, &[p])).collect();
        raw.send(&reads);
        assert!(raw.receive(count).iter().all(|response| response.status == Status::OKAY));
        assert!(data(&raw, 0, chunk.len()) == chunk, "chunk {number}");
    }
    parts_of_pages(&mut raw, content);
    raw.device.switch(XenbusState::Closed);
    raw.device.wait_for_backend(XenbusState::Closed);
}

/// Reads sectors 3 to 5 of one page and the last sector of another.
fn parts_of_pages<P: Protocol<Request = Request, Response = Response>>(
    raw: &mut RawFrontend<P>,
    content: &[u8],
) {
    let segment =
        |page: usize, first_sect, last_sect| Segment { gref: raw.data.refs()[page], first_sect, last_sect };
    let segments = [segment(0, 3, 5), segment(1, 7, 7)].into_iter().collect();
    let request = Io { operation: OP_READ, handle: 0, id: 7, sector_number: 9, nr_segments: 2, segments };
    raw.send(&[Request::Io(request)]);
    assert_eq!(outcome(&raw.receive(1)), [(7, OP_READ, Status::OKAY)]);
    assert!(data(raw, 3 * 512, 3 * 512) == content[9 * 512..12 * 512]);
    assert!(data(raw, PAGE_SIZE + 7 * 512, 512) == content[12 * 512..13 * 512]);
}

fn data<P>(raw: &RawFrontend<P>, offset: usize, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    raw.data.slice(offset, len).unwrap().copy_to(&mut data[..]);
    data
}

fn outcome(responses: &[Response]) -> Vec<(u64, u8, Status)> {
    responses.iter().map(|r| (r.id, r.operation, r.status)).collect()
}

mod local {
    use super::*;
    use testkit::block::{Backend, GUEST, XVDA};
    use testkit::{Machine, random};

    fn layout_keeps_data<P: Protocol<Request = Request, Response = Response>>(protocol: &str) {
        let machine = Machine::new();
        let _back = Backend::start(&machine);
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(8 << 20).unwrap();
        let path = image.path().to_str().unwrap();
        let device = machine.attach_disk(GUEST, XVDA, path);
        // Three times around the ring, with a partial request at the end.
        let content = random::bytes(32, 100 * FULL + 3 * PAGE_SIZE);
        write_and_read::<P>(FrontendDevice::new(machine.domain(GUEST), device), protocol, &content);
        assert!(std::fs::read(image.path()).unwrap()[..content.len()] == content);
    }

    #[test]
    fn layout_of_64_bit_guests_keeps_data() {
        layout_keeps_data::<X86_64>(key::PROTOCOL_X86_64);
    }

    #[test]
    fn layout_of_32_bit_guests_keeps_data() {
        layout_keeps_data::<X86_32>(key::PROTOCOL_X86_32);
    }
}

mod xen {
    use super::*;

    #[test]
    #[cfg_attr(not(xen_host), ignore = "needs a guest of a Xen host: tests/xen/run vbd-32")]
    fn layout_of_32_bit_guests_keeps_data() {
        let devices = FrontendDevice::of_xen_guest("vbd", "XPV_VBD");
        let content = std::env::var("XPV_CONTENT").expect("the scenario names the content");
        let content = std::fs::read(content).expect("the content");
        write_and_read::<X86_32>(devices[0].clone(), key::PROTOCOL_X86_32, &content);
    }
}
