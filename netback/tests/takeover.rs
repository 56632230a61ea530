//! Both rings, killed at any moment and resumed from their response logs: every slot of a guest is answered exactly
//! once and in order, and no packet or frame is answered in part.

use netback::rx::{FrameInfo, PageFill, Placement, Rx};
use netback::tx::Tx;
use proptest::prelude::*;
use ring_abi::GrantRef;
use ring_abi::netif::extra::{Extra, GSO_TCPV4, Kind};
use ring_abi::netif::{self, RxFlags, RxRequest, Status, TxFlags, TxRequest, TxSlot};
use ring_abi::ring::Front;
use ring_abi::testing::Pages;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The guest sends a packet of so many slots, every third with an extra; or posts so many buffers.
    Guest(usize),
    /// A round of at most `limit` packets or frames, the last `unfinished` of which are taken and not finished.
    Round {
        limit: usize,
        unfinished: usize,
    },
    Commit,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..18usize).prop_map(Step::Guest),
        3 => (1..8usize, 0..3usize).prop_map(|(limit, unfinished)| Step::Round { limit, unfinished }),
        2 => Just(Step::Commit),
        1 => Just(Step::Kill),
    ]
}

/// A guest's side of a transmit ring.
struct Sender {
    front: Front<netif::Tx, Pages>,
    id: u16,
    /// The expected responses: the id of a request, or `None` for an extra.
    waiting: VecDeque<Option<u16>>,
}

impl Sender {
    fn send(&mut self, slots: usize) {
        let with_extra = slots.is_multiple_of(3);
        if (self.front.free() as usize) < slots + usize::from(with_extra) {
            return;
        }
        for place in 0..slots {
            let mut flags = TxFlags::empty();
            flags.set(TxFlags::MORE_DATA, place + 1 < slots);
            flags.set(TxFlags::EXTRA_INFO, place == 0 && with_extra);
            let size = if place == 0 { 60 * slots as u16 } else { 60 };
            let request = TxRequest { gref: GrantRef(9), offset: 0, flags, id: self.id, size };
            self.push(request.into(), Some(self.id));
            self.id = self.id.wrapping_add(1);
            if place == 0 && with_extra {
                let kind = Kind::Gso { size: 1448, gso_type: GSO_TCPV4 };
                self.push(Extra { more: false, kind }.into(), None);
            }
        }
        let _ = self.front.commit();
    }

    fn push(&mut self, slot: TxSlot, expected: Option<u16>) {
        assert!(self.front.push(&slot));
        self.waiting.push_back(expected);
    }

    /// Takes all responses: each belongs to a slot without one.
    fn take_responses(&mut self) {
        while let Some(response) = self.front.pop().unwrap() {
            let id = (response.status != Status::NULL).then_some(response.id);
            // The backend answers a packet's extras after its requests.
            let index = self.waiting.iter().take(20).position(|waiting| *waiting == id);
            assert!(index.is_some_and(|index| index < 2), "{id:?} of {:?}", self.waiting);
            self.waiting.remove(index.unwrap());
        }
    }
}

fn attach_tx(ring: &Pages) -> Tx<Pages, Pages> {
    Tx::attach(ring.clone(), 8).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tx_killed_at_any_moment_answers_each_slot_once(steps in prop::collection::vec(step(), 0..200)) {
        let ring = Pages::new(1);
        let front = Front::init(ring.clone()).unwrap();
        let mut guest = Sender { front, id: 0, waiting: VecDeque::new() };
        let mut tx = attach_tx(&ring);
        let log = Pages::for_bytes(tx.logged().log_bytes());
        tx.logged().record(log.clone()).unwrap();
        for step in steps.into_iter().chain([Step::Kill]) {
            match step {
                Step::Guest(slots) => guest.send(slots),
                Step::Round { limit, unfinished } => {
                    let count = tx.poll(limit).unwrap().len();
                    (0..count.saturating_sub(unfinished)).for_each(|index| tx.respond(index, Status::OKAY));
                    // Packets unanswered at the end of a round: the process was killed there.
                    if unfinished > 0 {
                        tx = attach_tx(&ring);
                        tx.logged().resume(log.clone()).unwrap();
                    }
                }
                Step::Commit => drop(tx.commit()),
                Step::Kill => {
                    tx = attach_tx(&ring);
                    tx.logged().resume(log.clone()).unwrap();
                }
            }
            guest.take_responses();
        }
        while let count @ 1.. = tx.poll(8).unwrap().len() {
            (0..count).for_each(|index| tx.respond(index, Status::OKAY));
            let _ = tx.commit();
            guest.take_responses();
        }
        prop_assert!(guest.waiting.is_empty(), "not answered: {:?}", guest.waiting);
    }

    #[test]
    fn rx_killed_at_any_moment_answers_whole_frames(steps in prop::collection::vec(step(), 0..200)) {
        let ring = Pages::new(1);
        let mut front: Front<netif::Rx, Pages> = Front::init(ring.clone()).unwrap();
        let mut id = 0u16;
        let mut posted = VecDeque::new();
        let mut rx: Rx<Pages, Pages> = Rx::attach(ring.clone()).unwrap();
        let log = Pages::for_bytes(rx.logged().log_bytes());
        rx.logged().record(log.clone()).unwrap();
        for step in steps.into_iter().chain([Step::Kill]) {
            let mut killed = matches!(step, Step::Kill);
            match step {
                Step::Guest(slots) => {
                    for _ in 0..slots {
                        if front.push(&RxRequest { id, gref: GrantRef(u32::from(id) + 8) }) {
                            posted.push_back(id);
                            id = id.wrapping_add(1);
                        }
                    }
                    let _ = front.commit();
                }
                Step::Round { limit, unfinished } => {
                    let mut fills: Vec<PageFill> = Vec::new();
                    let info = FrameInfo { len: 3000 * limit, flags: RxFlags::empty(), gso: Some((1, 1448)) };
                    let placement = rx.place(info, &mut fills).unwrap();
                    prop_assert!(placement != Placement::TooLong);
                    // A slot that was answered is not taken for a request again.
                    prop_assert!(fills.iter().all(|fill| fill.gref.0 >= 8 && fill.gref.0 < 8 + u32::from(id)));
                    killed = unfinished > 0;
                    if !killed {
                        rx.finish();
                    }
                }
                Step::Commit => drop(rx.commit()),
                Step::Kill => {}
            }
            if killed {
                rx = Rx::attach(ring.clone()).unwrap();
                rx.logged().resume(log.clone()).unwrap();
            }
            take_frames(&mut front, &mut posted);
        }
        prop_assert_eq!(front.in_flight() as usize, posted.len());
    }
}

/// Takes all frames: each response is in its request's slot, and no frame is incomplete.
fn take_frames(front: &mut Front<netif::Rx, Pages>, posted: &mut VecDeque<u16>) {
    let mut more = false;
    let mut extra = false;
    while let Some(slot) = front.pop().unwrap() {
        let id = posted.pop_front();
        if std::mem::take(&mut extra) {
            continue;
        }
        let response = slot.response();
        assert_eq!(Some(response.id), id);
        extra = response.flags.contains(RxFlags::EXTRA_INFO);
        more = response.flags.contains(RxFlags::MORE_DATA);
    }
    assert!(!more && !extra, "an incomplete frame");
}
