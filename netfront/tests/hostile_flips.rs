//! Hostile backends that flip pages: what they answer is not what they transfer. The interface drops the frame or closes
//! its connection, keeps no page too few, and the guest's program runs on.

use grant_table::flip::Sender;
use grant_table::{Access, GrantTable, OwnedPage};
use netfront::handshake::RxChoice;
use netfront::{Config, DropReason, Nic};
use ring_abi::netif::{RxFlags, RxRequest, RxResponse, Status};
use ring_abi::{DomId, PAGE_SIZE};
use std::time::Instant;
use testkit::net::RawBackend;
use testkit::{BOUND, Machine, RawArena};

const GUEST: DomId = DomId(1);
/// At the start of a page of the guest's, by which its arena is found.
const MARKER: &[u8; 16] = b"the guest's own!";
/// GTF_accept_transfer of dom0, GTF_transfer_committed and GTF_transfer_completed.
const TRANSFERRED: u32 = 2 | 4 | 8;

struct Attack {
    nic: Nic,
    back: RawBackend,
    sender: Sender,
    _machine: Machine,
}

impl Attack {
    fn start() -> Attack {
        let machine = Machine::new();
        let dom0 = machine.domain(DomId::DOM0);
        let config = Config { rx: RxChoice::Flip, ..Config::default() };
        let (nic, back) = RawBackend::connect_as(&machine, &*dom0, GUEST, config);
        Attack { nic, back, sender: Sender::new(dom0, GUEST), _machine: machine }
    }

    fn request(&mut self) -> RxRequest {
        self.back.rx.pop().unwrap().expect("the guest has posted a buffer")
    }

    fn page(&mut self) -> OwnedPage {
        assert!(self.sender.refill(1, 8).unwrap() > 0, "the guest gives up a page for every buffer");
        self.sender.page().unwrap()
    }

    fn transfer(&mut self, page: OwnedPage, request: &RxRequest) {
        self.sender.add(page, request.gref);
        self.sender.flush(|_, status| assert!(status.is_okay(), "{status}")).unwrap();
    }

    fn respond(&mut self, id: u16, offset: u16, status: i16) {
        self.back.rx.push(&RxResponse { id, offset, flags: RxFlags::empty(), status }.into());
        let _ = self.back.rx.commit();
        self.back.event.notify().unwrap();
    }

    /// Receives until a frame was dropped for this reason `count` times.
    fn assert_dropped(&mut self, reason: DropReason, count: u64) {
        let deadline = Instant::now() + BOUND;
        while self.nic.counters().dropped(reason) < count {
            assert!(Instant::now() < deadline, "{:?}", self.nic.counters());
            assert!(self.nic.recv(&mut [0; 4096]).is_none());
            self.nic.flush();
        }
        assert!(self.nic.is_up() && self.nic.counters().dropped(reason) == count);
    }

    /// A valid frame arrives.
    fn assert_works(&mut self) {
        let request = self.request();
        let page = self.page();
        page.slice(0, 60).unwrap().copy_from(&[7; 60][..]);
        self.transfer(page, &request);
        self.respond(request.id, 0, 60);
        let mut into = [0; 4096];
        let deadline = Instant::now() + BOUND;
        while self.nic.recv(&mut into).is_none() {
            assert!(Instant::now() < deadline, "no frame within {BOUND:?}");
        }
        assert_eq!(into[..60], [7; 60]);
        self.nic.flush();
    }
}

#[test]
fn response_without_a_page_is_dropped_and_its_buffer_posted_again() {
    let mut attack = Attack::start();
    // More often than there are buffers.
    for count in 1..=600 {
        let request = attack.request();
        attack.respond(request.id, 0, 60);
        attack.assert_dropped(DropReason::NoPage, count);
    }
    attack.assert_works();
}

#[test]
fn page_with_a_response_that_is_an_error_or_beyond_it_is_freed() {
    let mut attack = Attack::start();
    // More pages in all than the guest has.
    for count in 1..=10_000 {
        let request = attack.request();
        let page = attack.page();
        attack.transfer(page, &request);
        if count % 2 == 0 {
            attack.respond(request.id, 0, Status::ERROR.0);
            attack.assert_dropped(DropReason::Status, count / 2);
        } else {
            attack.respond(request.id, 4090, 60);
            attack.assert_dropped(DropReason::Size, count / 2 + 1);
        }
    }
    attack.assert_works();
}

#[test]
fn page_that_comes_after_its_response_is_not_lost() {
    const LATE: u64 = 100;
    const BUFFERS: u64 = 256;
    let mut attack = Attack::start();
    for count in 1..=BUFFERS {
        let request = attack.request();
        let page = attack.page();
        attack.respond(request.id, 0, 60);
        attack.assert_dropped(DropReason::NoPage, count);
        // The buffer is posted again, and has a page before dom0 takes it.
        if count <= LATE {
            attack.transfer(page, &request);
        }
    }
    for _ in 0..LATE {
        let request = attack.request();
        attack.respond(request.id, 0, 60);
        let deadline = Instant::now() + BOUND;
        while attack.nic.recv(&mut [0; 4096]).is_none() {
            assert!(Instant::now() < deadline, "the page that came late is lost");
        }
        attack.nic.flush();
    }
    attack.assert_works();
}

#[test]
fn frame_that_was_never_given_up_closes_the_connection_and_stays_the_guests() {
    // A page in use; pages of the grant table; beyond the arena.
    for frame in [None, Some(0), Some(1), Some(u32::MAX)] {
        let mut attack = Attack::start();
        let own = attack.back.guest.share(DomId::DOM0, 1, Access::ReadOnly).unwrap();
        own.slice(0, MARKER.len()).unwrap().copy_from(&MARKER[..]);
        let arena = RawArena::find(MARKER);
        let request = attack.request();
        arena.set_entry(request.gref, [TRANSFERRED, frame.unwrap_or(arena.marked())]);
        attack.respond(request.id, 0, 60);
        let deadline = Instant::now() + BOUND;
        while attack.nic.is_up() {
            assert!(Instant::now() < deadline, "frame {frame:?}: up after {BOUND:?}");
            assert!(attack.nic.recv(&mut [0; 4096]).is_none());
        }
        let mut bytes = vec![0; PAGE_SIZE];
        own.slice(0, PAGE_SIZE).unwrap().copy_to(&mut bytes);
        assert!(bytes.starts_with(MARKER), "the page is in other use");
    }
}
