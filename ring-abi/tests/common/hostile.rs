//! The harness of the property test, of Miri and of the fuzz target: a script of bytes is a peer that writes any values into
//! the shared page between this side's operations. Nothing may panic, and all counts stay within the ring.

use ring_abi::blkif::{self, Request, X86_32, X86_64, indirect};
use ring_abi::netif::{self, ctrl, extra};
use ring_abi::ring::{Back, Front, Protocol};
use ring_abi::shm::Memory;
use ring_abi::stream::{Interface, Stream};
use ring_abi::testing::{Pages, Script};
use ring_abi::{GrantRef, PAGE_SIZE, console, xs_wire};

/// Writes a word of the page as the peer: any word, or one of the indexes, with any value or a small change.
fn poke(script: &mut Script<'_>, pages: &Pages) {
    let place = script.word();
    let page = pages.words();
    let offset = if place & 1 == 0 { place as usize % 16 } else { place as usize % pages.len() } & !3;
    let value = script.word();
    let value = if place & 2 == 0 { value } else { page.load32(offset).wrapping_add(value % 64) };
    page.store32(offset, value);
}

/// Values of a protocol to send, and the properties of any received request.
trait Sample: Protocol {
    fn request() -> Self::Request;
    fn response() -> Self::Response;
    fn check(_: &Self::Request) {}
}

fn back<P: Sample>(mut script: Script<'_>) {
    let pages = Pages::new(1);
    // The ring may start at any index, also close to where indexes wrap.
    pages.words().store32(8, script.word());
    let mut back = Back::<P, _>::attach(pages.clone()).unwrap();
    while let Some(step) = script.step() {
        match step % 8 {
            0..2 => poke(&mut script, &pages),
            2..4 => {
                if let Ok(Some(request)) = back.pop() {
                    P::check(&request);
                }
            }
            4 if back.unanswered() > 0 => back.push(&P::response()),
            4 | 5 => _ = back.commit(),
            6 => _ = back.arm(),
            _ => _ = back.refresh(),
        }
        assert!(back.unanswered() <= back.size(), "more unanswered requests than slots");
        assert!(back.seen() + back.unanswered() <= back.size());
    }
}

fn front<P: Sample>(mut script: Script<'_>) {
    let pages = Pages::new(1);
    let mut front = Front::<P, _>::init(pages.clone()).unwrap();
    let mut sent = 0;
    let mut answered = 0;
    while let Some(step) = script.step() {
        match step % 8 {
            0..2 => poke(&mut script, &pages),
            2 => answered += u64::from(matches!(front.pop(), Ok(Some(_)))),
            3..5 => sent += u64::from(front.push(&P::request())),
            5 => _ = front.commit(),
            6 => _ = front.arm(),
            _ => _ = front.refresh(),
        }
        assert!(answered <= sent, "more responses than requests");
        assert_eq!(sent - answered, u64::from(front.size() - front.free()));
        assert!(front.in_flight() <= front.size() && front.seen() <= front.in_flight());
    }
}

fn stream(mut script: Script<'_>, interface: &Interface) {
    let pages = Pages::new(1);
    let mut stream = Stream::back(pages.clone(), interface).unwrap();
    while let Some(step) = script.step() {
        let count = usize::from(script.byte()) * 16;
        let done = match step % 4 {
            0 => stream.read(&mut vec![0; count]),
            1 => stream.write(&vec![1; count]),
            2 => {
                poke(&mut script, &pages);
                Ok(0)
            }
            _ => {
                let own = [interface.to_back.prod, interface.to_front.cons][count / 16 % 2];
                pages.words().store32(own, pages.words().load32(own).wrapping_add(count as u32));
                Ok(0)
            }
        };
        assert!(done.is_ok_and(|done| done <= count) || done.is_err());
        assert!(stream.readable().unwrap_or(0) <= interface.to_back.size as usize);
        assert!(stream.writable().unwrap_or(0) <= interface.to_front.size as usize);
    }
}

fn segments(mut script: Script<'_>) {
    let pages = Pages::new(1);
    let mut bytes = [0; PAGE_SIZE];
    while script.step().is_some() {
        poke(&mut script, &pages);
        pages.words().load_bytes(0, &mut bytes);
        let len = script.word() as usize % (PAGE_SIZE + 1);
        let found = indirect::segments(&bytes[..len]);
        assert_eq!(found.len(), len / 8);
        assert_eq!(found.count(), len / 8);
    }
}

/// Runs a script of bytes, whose first chooses the ring or stream.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let Some(kind) = script.step() else { return };
    match kind % 13 {
        0 => back::<X86_64>(script),
        1 => back::<X86_32>(script),
        2 => back::<netif::Tx>(script),
        3 => back::<netif::Rx>(script),
        4 => back::<ctrl::Ctrl>(script),
        5 => front::<X86_64>(script),
        6 => front::<X86_32>(script),
        7 => front::<netif::Tx>(script),
        8 => front::<netif::Rx>(script),
        9 => front::<ctrl::Ctrl>(script),
        10 => stream(script, &console::INTERFACE),
        11 => stream(script, &xs_wire::ring_page::INTERFACE),
        _ => segments(script),
    }
}

macro_rules! block {
    ($($protocol:ty),*) => {$(
        impl Sample for $protocol {
            fn request() -> Request {
                Request::default()
            }
            fn response() -> blkif::Response {
                blkif::Response { id: 1, operation: 0, status: blkif::Status::OKAY }
            }
            fn check(request: &Request) {
                match request {
                    Request::Io(io) => {
                        assert_eq!(io.segments.len(), usize::from(io.nr_segments).min(blkif::MAX_SEGMENTS));
                        assert!(io.operation <= blkif::OP_FLUSH_DISKCACHE);
                    }
                    Request::Unknown { operation, .. } => assert!(*operation == 4 || *operation > 6),
                    Request::Discard(_) | Request::Indirect(_) => {}
                }
            }
        }
    )*};
}

block!(X86_64, X86_32);

impl Sample for netif::Tx {
    fn request() -> netif::TxSlot {
        extra::Extra { more: false, kind: extra::Kind::McastAdd([1; 6]) }.into()
    }
    fn response() -> netif::TxResponse {
        netif::TxResponse { id: 1, status: netif::Status::OKAY }
    }
    fn check(slot: &netif::TxSlot) {
        assert_eq!(netif::TxSlot::from(slot.request()), *slot, "converting a slot loses nothing");
        let _ = slot.extra();
    }
}

impl Sample for netif::Rx {
    fn request() -> netif::RxRequest {
        netif::RxRequest { id: 1, gref: GrantRef(8) }
    }
    fn response() -> netif::RxSlot {
        netif::RxResponse { id: 1, offset: 0, flags: netif::RxFlags::empty(), status: 60 }.into()
    }
}

impl Sample for ctrl::Ctrl {
    fn request() -> ctrl::Request {
        ctrl::Request { id: 1, kind: ctrl::Type::GET_HASH_FLAGS, data: [0; 3] }
    }
    fn response() -> ctrl::Response {
        let kind = ctrl::Type::GET_HASH_FLAGS;
        ctrl::Response { id: 1, kind, status: ctrl::Status::SUCCESS, data: 0 }
    }
}
