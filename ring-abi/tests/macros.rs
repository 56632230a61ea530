//! Both halves of every ring against Xen's own macros: the same random run is made four times, with each half in Rust or
//! in C, and must give the same requests and responses, the same notifications and the same pages, byte for byte.
#![cfg(not(any(loom, miri)))] // Calls into C.
#![allow(unsafe_code)] // Calls into C.

use libloading::{Library, Symbol};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ring_abi::blkif::{self, Discard, Indirect, Io, Segment, X86_32, X86_64};
use ring_abi::netif::{self, ctrl, extra};
use ring_abi::ring::{Back, Front, Protocol};
use ring_abi::shm::Memory;
use ring_abi::testing::Pages;
use ring_abi::{GrantRef, PAGE_SIZE};
use std::ffi::c_void;
use std::process::Command;
use std::sync::OnceLock;

struct C {
    library: Library,
    prefix: &'static str,
}

type Bytes = Vec<u8>;

/// Compiles the peer as a shared object.
fn compile(abi32: bool) -> Bytes {
    let object = tempfile::NamedTempFile::new().unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/c/peer.c");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]);
    cc.args(abi32.then_some("-DABI32")).arg("-o").args([object.path().as_os_str(), source.as_ref()]);
    let out = cc.output().expect("package gcc");
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "packages gcc, libc6-dev, libxen-dev: {text}");
    std::fs::read(object.path()).unwrap()
}

impl C {
    /// Loads a copy of the peer, whose static rings no other run uses.
    fn build(prefix: &'static str, abi32: bool) -> Self {
        static OBJECTS: [OnceLock<Vec<u8>>; 2] = [OnceLock::new(), OnceLock::new()];
        let object = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(object.path(), OBJECTS[usize::from(abi32)].get_or_init(|| compile(abi32))).unwrap();
        // SAFETY: our own object, without initialisers.
        Self { library: unsafe { Library::new(object.path()) }.unwrap(), prefix }
    }

    fn get<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: the callers' types are those of tests/c/peer.c.
        unsafe { self.library.get(name) }.unwrap()
    }

    fn ring<T>(&self, name: &str) -> Symbol<'_, T> {
        self.get(&format!("{}_{name}", self.prefix))
    }

    fn init(&self, half: &str, pages: &Pages) {
        let init = self.ring::<unsafe extern "C" fn(*mut c_void, usize)>(&format!("{half}_init"));
        // SAFETY: that many bytes.
        unsafe { init(pages.base().as_ptr().cast(), pages.len()) }
    }

    fn flag(&self, name: &str) -> bool {
        // SAFETY: the rings were initialised.
        unsafe { self.ring::<unsafe extern "C" fn() -> i32>(name)() != 0 }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> bool {
        // SAFETY: reads no more than the structure, which `bytes` is.
        unsafe { self.ring::<unsafe extern "C" fn(*const u8) -> i32>(name)(bytes.as_ptr()) != 0 }
    }

    fn take(&self, name: &str, len: usize) -> Option<Bytes> {
        let mut bytes = vec![0; 128];
        // SAFETY: writes no more than a structure, all of which are shorter.
        let found = unsafe { self.ring::<unsafe extern "C" fn(*mut u8) -> i32>(name)(bytes.as_mut_ptr()) };
        bytes.truncate(len);
        (found != 0).then_some(bytes)
    }

    /// Converts a structure by a function in C.
    fn convert<A, const N: usize>(&self, name: &str, from: &A) -> [u8; N] {
        let mut to = [0; N];
        // SAFETY: the caller gives the sizes of the structures.
        unsafe { self.get::<unsafe extern "C" fn(*const A, *mut u8)>(name)(from, to.as_mut_ptr()) };
        to
    }
}

/// A ring's values, and their bytes in C's structures.
trait Wire: Protocol {
    const PREFIX: &'static str;
    const ABI32: bool = false;
    fn request(numbers: &mut SmallRng) -> Self::Request;
    fn response(numbers: &mut SmallRng) -> Self::Response;
    fn request_bytes(c: &C, request: &Self::Request) -> Bytes;
    fn response_bytes(c: &C, response: &Self::Response) -> Bytes;
    /// The bytes without the structure's unused part, which is not overwritten in a slot.
    fn clean(_c: &C, bytes: Bytes) -> Bytes {
        bytes
    }
}

fn run<P: Wire>(c_front: bool, c_back: bool, pages: usize, seed: u64) -> (Vec<String>, Bytes)
where
    P::Request: std::fmt::Debug,
{
    let c = C::build(P::PREFIX, P::ABI32);
    let pages = Pages::new(pages);
    let mut numbers = SmallRng::seed_from_u64(seed);
    let mut front = Front::<P, _>::init(pages.clone()).unwrap();
    c.init("front", &pages);
    let mut back = Back::<P, _>::attach(pages.clone()).unwrap();
    c.init("back", &pages);
    // SAFETY: the C function of that type.
    assert_eq!(front.size(), unsafe { c.ring::<unsafe extern "C" fn() -> u32>("size")() });
    let response_len = response_len::<P>(&c);
    let mut log = Vec::new();
    let mut unanswered = 0;
    for _ in 0..6_000 {
        let line = match numbers.random_range(0..16) {
            0..4 => {
                let request = P::request(&mut numbers);
                let pushed = if c_front {
                    c.put("front_push", &P::request_bytes(&c, &request))
                } else {
                    front.push(&request)
                };
                format!("push {pushed}")
            }
            4..6 => format!(
                "front commit {}",
                if c_front { c.flag("front_commit") } else { front.commit().wanted() }
            ),
            6..9 => {
                let found = if c_back {
                    c.take("back_pop", P::SLOT).map(|bytes| P::clean(&c, bytes))
                } else {
                    back.pop().unwrap().map(|request| P::request_bytes(&c, &request))
                };
                unanswered += u32::from(found.is_some());
                format!("pop {found:?}")
            }
            9..12 if unanswered > 0 => {
                unanswered -= 1;
                let response = P::response(&mut numbers);
                if c_back {
                    c.put("back_push", &P::response_bytes(&c, &response));
                } else {
                    back.push(&response);
                }
                "answer".into()
            }
            9..13 => {
                format!("back commit {}", if c_back { c.flag("back_commit") } else { back.commit().wanted() })
            }
            13 => format!("back arm {}", if c_back { c.flag("back_arm") } else { back.arm().unwrap() }),
            14 => format!("front arm {}", if c_front { c.flag("front_arm") } else { front.arm().unwrap() }),
            _ => {
                let found = if c_front {
                    c.take("front_pop", response_len)
                } else {
                    front.pop().unwrap().map(|response| P::response_bytes(&c, &response))
                };
                format!("reap {found:?}")
            }
        };
        log.push(line);
    }
    (log, pages.bytes())
}

fn response_len<P: Wire>(c: &C) -> usize {
    P::response_bytes(c, &P::response(&mut SmallRng::seed_from_u64(0))).len()
}

/// Compares the four runs.
fn all_four<P: Wire>(pages: usize)
where
    P::Request: std::fmt::Debug,
{
    let ours = run::<P>(false, false, pages, 42);
    for needed in ["push true", "push false", "front commit true", "front commit false", "back commit true"] {
        assert!(ours.0.iter().any(|line| line == needed), "the run lacks: {needed}");
    }
    for (front, back) in [(true, true), (true, false), (false, true)] {
        let theirs = run::<P>(front, back, pages, 42);
        for (step, (a, b)) in ours.0.iter().zip(&theirs.0).enumerate() {
            assert_eq!(a, b, "{}, step {step}, front in C: {front}, back in C: {back}", P::NAME);
        }
        assert!(ours.1 == theirs.1, "{}: pages differ, front in C: {front}, back in C: {back}", P::NAME);
    }
}

#[repr(C)]
#[derive(Default)]
struct Flat {
    id: u64,
    sector_number: u64,
    nr_sectors: u64,
    gref: [u32; 11],
    indirect_gref: [u32; 8],
    handle: u16,
    indirect_segments: u16,
    operation: u8,
    nr_segments: u8,
    flag: u8,
    indirect_op: u8,
    first: [u8; 11],
    last: [u8; 11],
}

fn flat(request: &blkif::Request) -> Flat {
    let mut flat = Flat { id: request.id(), operation: request.operation(), ..Flat::default() };
    match request {
        blkif::Request::Io(r) => {
            flat.handle = r.handle;
            flat.nr_segments = r.nr_segments;
            flat.sector_number = r.sector_number;
            for (i, s) in r.segments.iter().enumerate() {
                flat.gref[i] = s.gref.0;
                flat.first[i] = s.first_sect;
                flat.last[i] = s.last_sect;
            }
        }
        blkif::Request::Discard(r) => {
            flat.handle = r.handle;
            flat.flag = r.flag;
            flat.sector_number = r.sector_number;
            flat.nr_sectors = r.nr_sectors;
        }
        blkif::Request::Indirect(r) => {
            flat.operation = blkif::OP_INDIRECT;
            flat.handle = r.handle;
            flat.indirect_op = r.indirect_op;
            flat.sector_number = r.sector_number;
            flat.indirect_segments = r.nr_segments;
            flat.indirect_gref = r.indirect_grefs.map(|g| g.0);
        }
        blkif::Request::Unknown { .. } => {}
    }
    flat
}

fn block_request(numbers: &mut SmallRng) -> blkif::Request {
    let id = numbers.next_u64();
    let sector_number = numbers.next_u64();
    let handle = numbers.next_u64() as u16;
    match numbers.random_range(0..6) {
        0 => blkif::Request::Discard(Discard {
            id,
            sector_number,
            handle,
            flag: numbers.random_range(0..2) as u8,
            nr_sectors: numbers.next_u64(),
        }),
        1 => blkif::Request::Indirect(Indirect {
            id,
            sector_number,
            handle,
            indirect_op: numbers.random_range(0..2) as u8,
            nr_segments: numbers.random_range(0..4097) as u16,
            indirect_grefs: std::array::from_fn(|_| GrantRef(numbers.next_u64() as u32)),
        }),
        operation => {
            let nr_segments = numbers.random_range(0..12) as u8;
            let segments = (0..nr_segments).map(|_| Segment {
                gref: GrantRef(numbers.next_u64() as u32),
                first_sect: numbers.random_range(0..8) as u8,
                last_sect: numbers.random_range(0..8) as u8,
            });
            let segments = segments.collect();
            blkif::Request::Io(Io {
                operation: operation as u8 - 2,
                handle,
                id,
                sector_number,
                nr_segments,
                segments,
            })
        }
    }
}

#[repr(C)]
struct FlatResponse {
    id: u64,
    status: i16,
    operation: u8,
}

fn block_response(numbers: &mut SmallRng) -> blkif::Response {
    let status = blkif::Status(-(numbers.random_range(0..3) as i16));
    blkif::Response { id: numbers.next_u64(), operation: numbers.random_range(0..7) as u8, status }
}

macro_rules! block {
    ($protocol:ty, $abi32:literal, $request:literal, $response:literal) => {
        impl Wire for $protocol {
            const PREFIX: &'static str = "blkif";
            const ABI32: bool = $abi32;
            fn request(numbers: &mut SmallRng) -> blkif::Request {
                block_request(numbers)
            }
            fn response(numbers: &mut SmallRng) -> blkif::Response {
                block_response(numbers)
            }
            fn request_bytes(c: &C, request: &blkif::Request) -> Bytes {
                c.convert::<_, $request>("unflatten", &flat(request)).into()
            }
            fn response_bytes(c: &C, r: &blkif::Response) -> Bytes {
                let flat = FlatResponse { id: r.id, status: r.status.0, operation: r.operation };
                c.convert::<_, $response>("unflatten_response", &flat).into()
            }
            fn clean(c: &C, bytes: Bytes) -> Bytes {
                let flat: [u8; size_of::<Flat>()] =
                    c.convert("flatten", bytes.first_chunk::<$request>().unwrap());
                c.convert::<_, $request>("unflatten", &flat).into()
            }
        }
    };
}

block!(X86_64, false, 112, 16);
block!(X86_32, true, 108, 12);

impl Wire for netif::Tx {
    const PREFIX: &'static str = "netif_tx";
    fn request(n: &mut SmallRng) -> netif::TxSlot {
        let flags = netif::TxFlags::from_bits_retain(n.random_range(0..16) as u16);
        let gref = GrantRef(n.next_u64() as u32);
        let offset = n.next_u64() as u16;
        let id = n.next_u64() as u16;
        let size = n.next_u64() as u16;
        netif::TxRequest { gref, offset, flags, id, size }.into()
    }
    fn response(n: &mut SmallRng) -> netif::TxResponse {
        netif::TxResponse { id: n.next_u64() as u16, status: netif::Status(n.random_range(0..4) as i16 - 2) }
    }
    fn request_bytes(c: &C, slot: &netif::TxSlot) -> Bytes {
        let r = slot.request();
        let mut to = [0; 12];
        let make = c.get::<unsafe extern "C" fn(*mut u8, u32, u16, u16, u16, u16)>("make_tx_request");
        // SAFETY: the structure is 12 bytes.
        unsafe { make(to.as_mut_ptr(), r.gref.0, r.offset, r.flags.bits(), r.id, r.size) };
        to.into()
    }
    fn response_bytes(_: &C, r: &netif::TxResponse) -> Bytes {
        [r.id.to_le_bytes(), r.status.0.to_le_bytes()].concat()
    }
}

impl Wire for netif::Rx {
    const PREFIX: &'static str = "netif_rx";
    fn request(n: &mut SmallRng) -> netif::RxRequest {
        netif::RxRequest { id: n.next_u64() as u16, gref: GrantRef(n.next_u64() as u32) }
    }
    fn response(n: &mut SmallRng) -> netif::RxSlot {
        let flags = netif::RxFlags::from_bits_retain(n.random_range(0..16) as u16);
        let id = n.next_u64() as u16;
        let offset = n.next_u64() as u16;
        let status = n.next_u64() as i16;
        netif::RxResponse { id, offset, flags, status }.into()
    }
    fn request_bytes(_: &C, r: &netif::RxRequest) -> Bytes {
        [u32::from(r.id).to_le_bytes(), r.gref.0.to_le_bytes()].concat()
    }
    fn response_bytes(c: &C, slot: &netif::RxSlot) -> Bytes {
        let r = slot.response();
        let mut to = [0; 8];
        let make = c.get::<unsafe extern "C" fn(*mut u8, u16, u16, u16, i16)>("make_rx_response");
        // SAFETY: the structure is 8 bytes.
        unsafe { make(to.as_mut_ptr(), r.id, r.offset, r.flags.bits(), r.status) };
        to.into()
    }
}

impl Wire for ctrl::Ctrl {
    const PREFIX: &'static str = "xen_netif_ctrl";
    fn request(n: &mut SmallRng) -> ctrl::Request {
        let data = std::array::from_fn(|_| n.next_u64() as u32);
        ctrl::Request { id: n.next_u64() as u16, kind: ctrl::Type(n.random_range(0..11) as u16), data }
    }
    fn response(n: &mut SmallRng) -> ctrl::Response {
        let status = ctrl::Status(n.random_range(0..4) as u32);
        let data = n.next_u64() as u32;
        ctrl::Response {
            id: n.next_u64() as u16,
            kind: ctrl::Type(n.random_range(0..11) as u16),
            status,
            data,
        }
    }
    fn request_bytes(_: &C, r: &ctrl::Request) -> Bytes {
        let head = [r.id.to_le_bytes(), r.kind.0.to_le_bytes()].concat();
        [head, r.data.map(u32::to_le_bytes).concat()].concat()
    }
    fn response_bytes(_: &C, r: &ctrl::Response) -> Bytes {
        let head = [r.id.to_le_bytes(), r.kind.0.to_le_bytes()].concat();
        [head, r.status.0.to_le_bytes().into(), r.data.to_le_bytes().into()].concat()
    }
}

#[test]
fn block_rings_of_64_bits_match_the_macros() {
    all_four::<X86_64>(1);
    all_four::<X86_64>(16);
}

#[test]
fn block_rings_of_32_bits_match_the_macros() {
    all_four::<X86_32>(1);
    all_four::<X86_32>(4);
}

#[test]
fn transmit_rings_match_the_macros() {
    all_four::<netif::Tx>(1);
}

#[test]
fn receive_rings_match_the_macros() {
    all_four::<netif::Rx>(1);
}

#[test]
fn control_rings_match_the_macros() {
    all_four::<ctrl::Ctrl>(1);
}

#[test]
fn extras_match_the_c_structures() {
    let c = C::build("netif_tx", false);
    let bytes = |extra: extra::Extra| extra.to_words().map(u32::to_le_bytes).concat();
    let mut made = [0; 8];
    // SAFETY: the structure is 8 bytes.
    unsafe { c.get::<unsafe extern "C" fn(*mut u8, u8, u16, u8)>("make_gso")(made.as_mut_ptr(), 1, 1448, 2) };
    let gso = extra::Extra { more: true, kind: extra::Kind::Gso { size: 1448, gso_type: extra::GSO_TCPV6 } };
    assert_eq!(bytes(gso), made);
    let address = [1, 0, 0x5e, 3, 4, 5];
    let mcast = c.get::<unsafe extern "C" fn(*mut u8, u8, *const u8)>("make_mcast");
    // SAFETY: the structure is 8 bytes and the address 6.
    unsafe { mcast(made.as_mut_ptr(), 2, address.as_ptr()) };
    assert_eq!(bytes(extra::Extra { more: false, kind: extra::Kind::McastAdd(address) }), made);
    let value = [9, 8, 7, 6];
    let hash = c.get::<unsafe extern "C" fn(*mut u8, u8, u8, *const u8)>("make_hash");
    // SAFETY: the structure is 8 bytes and the value 4.
    unsafe { hash(made.as_mut_ptr(), 1, 1, value.as_ptr()) };
    let kind = extra::Kind::Hash { hash_type: 1, algorithm: 1, value };
    assert_eq!(bytes(extra::Extra { more: false, kind }), made);
    assert_eq!(PAGE_SIZE, 4096);
}
