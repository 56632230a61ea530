//! Whatever happens to pages that are flipped, each is in one hand: whoever has one finds in it what he wrote, and when
//! all is over, the guest has every page again. Both sides die and come back between any two steps.

use grant_table::flip::{Receiver, Sender};
use grant_table::{Access, GrantTable, OwnedPage, Shared, SharedSlice};
use hypervisor::local::{Domain, Options, Sandbox};
use proptest::prelude::*;
use ring_abi::{DomId, PAGE_SIZE};
use std::sync::Arc;
use testkit::BOUND;

const GUEST: DomId = DomId(1);
const ENTRIES: usize = 6;
const SMALL: Options = Options { arena_pages: 64 };

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The donor fills a page for an entry, which may have one already.
    Fill(usize),
    Flush,
    Take(usize),
    /// The acceptor frees a page that it took.
    Free(usize),
    Renew,
    /// The acceptor uses so many of its free pages for something else, and then frees one of the earlier.
    Use(usize),
    /// The acceptor closes its entries and opens others.
    Reopen,
    /// The donor closes its connection and opens another.
    Reconnect,
    DonorExits,
    AcceptorExits,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..ENTRIES).prop_map(Step::Fill),
        12 => Just(Step::Flush),
        20 => (0..ENTRIES).prop_map(Step::Take),
        10 => any::<usize>().prop_map(Step::Free),
        12 => Just(Step::Renew),
        6 => (1usize..20).prop_map(Step::Use),
        2 => Just(Step::Reopen),
        2 => Just(Step::Reconnect),
        2 => Just(Step::DonorExits),
        1 => Just(Step::AcceptorExits),
    ]
}

fn write(page: SharedSlice<'_>, stamp: u64) {
    (0..PAGE_SIZE).step_by(512).for_each(|at| page.subslice(at, 8).unwrap().copy_from(&stamp.to_le_bytes()));
}

fn holds(page: SharedSlice<'_>, stamp: u64) -> bool {
    (0..PAGE_SIZE).step_by(512).all(|at| {
        let mut bytes = [0; 8];
        page.subslice(at, 8).unwrap().copy_to(&mut bytes);
        u64::from_le_bytes(bytes) == stamp
    })
}

fn page(page: &OwnedPage) -> SharedSlice<'_> {
    page.slice(0, PAGE_SIZE).unwrap()
}

struct World {
    guest: Option<Arc<Domain>>,
    receiver: Option<Receiver>,
    dom0: Option<Arc<Domain>>,
    sender: Option<Sender>,
    /// The donor's batch: for each page its entry and its stamp.
    batch: Vec<(usize, u64)>,
    /// For each entry the stamp of the page that was transferred to it and not taken.
    sent: [Option<u64>; ENTRIES],
    taken: Vec<(OwnedPage, u64)>,
    used: Vec<(Shared, u64)>,
    last_stamp: u64,
    sandbox: Sandbox,
}

impl World {
    fn new() -> World {
        let sandbox = Sandbox::new().unwrap();
        let mut world = World {
            guest: None,
            receiver: None,
            dom0: None,
            sender: None,
            batch: Vec::new(),
            sent: [None; ENTRIES],
            taken: Vec::new(),
            used: Vec::new(),
            last_stamp: 0,
            sandbox,
        };
        world.join_acceptor();
        world.join_donor();
        world
    }

    fn join_acceptor(&mut self) {
        self.guest = Some(self.sandbox.join_with(GUEST, SMALL).unwrap());
        self.open();
    }

    fn open(&mut self) {
        self.sent = [None; ENTRIES];
        self.receiver = Some(Receiver::new(self.guest.clone().unwrap(), DomId::DOM0, ENTRIES).unwrap());
    }

    fn join_donor(&mut self) {
        let dom0 = self.sandbox.join(DomId::DOM0).unwrap();
        self.sender = Some(Sender::new(dom0.clone(), GUEST));
        self.dom0 = Some(dom0);
    }

    fn await_death(&self, domid: DomId) {
        assert!(self.sandbox.control().await_death(domid).unwrap().wait(BOUND).unwrap());
    }

    fn stamp(&mut self) -> u64 {
        self.last_stamp += 1;
        self.last_stamp
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Fill(entry) => self.fill(entry),
            Step::Flush => self.flush(),
            Step::Take(entry) => self.take(entry),
            Step::Free(at) if !self.taken.is_empty() => {
                let at = at % self.taken.len();
                let (freed, stamp) = self.taken.swap_remove(at);
                assert!(holds(page(&freed), stamp), "a page of the guest's was written");
            }
            Step::Free(_) => {}
            Step::Renew => self.receiver.as_mut().unwrap().renew(|_, _| {}).unwrap(),
            Step::Use(count) => self.use_pages(count),
            Step::Reopen => {
                self.receiver = None;
                // So that there is a page for every entry.
                self.free_all();
                self.open();
            }
            Step::Reconnect => {
                self.batch.clear();
                self.sender = Some(Sender::new(self.dom0.clone().unwrap(), GUEST));
            }
            Step::DonorExits => {
                self.batch.clear();
                self.sender = None;
                self.dom0 = None;
                self.await_death(DomId::DOM0);
                self.join_donor();
            }
            Step::AcceptorExits => {
                self.receiver = None;
                self.taken.clear();
                self.used.clear();
                self.guest = None;
                self.await_death(GUEST);
                self.join_acceptor();
            }
        }
    }

    fn fill(&mut self, entry: usize) {
        let stamp = self.stamp();
        let sender = self.sender.as_mut().unwrap();
        if sender.refill(1, ENTRIES).unwrap() == 0 {
            return;
        }
        let filled = sender.page().unwrap();
        write(page(&filled), stamp);
        sender.add(filled, self.receiver.as_ref().unwrap().gref(entry));
        self.batch.push((entry, stamp));
    }

    fn flush(&mut self) {
        let mut batch = std::mem::take(&mut self.batch).into_iter();
        let sent = &mut self.sent;
        let flushed = self.sender.as_mut().unwrap().flush(|_, status| {
            let (entry, stamp) = batch.next().unwrap();
            if status.is_okay() {
                assert!(sent[entry].replace(stamp).is_none(), "an entry accepted two pages");
            }
        });
        flushed.unwrap();
    }

    fn take(&mut self, entry: usize) {
        let taken = self.receiver.as_mut().unwrap().take(entry).unwrap();
        let expected = self.sent[entry].take();
        assert_eq!(
            taken.is_some(),
            expected.is_some(),
            "a transferred page is lost, or appeared from nowhere"
        );
        if let (Some(taken), Some(sent)) = (taken, expected) {
            assert!(holds(page(&taken), sent), "a page changed after it was filled");
            let stamp = self.stamp();
            write(page(&taken), stamp);
            self.taken.push((taken, stamp));
        }
    }

    fn use_pages(&mut self, count: usize) {
        if !self.used.is_empty() {
            let (freed, stamp) = self.used.swap_remove(count % self.used.len());
            assert!(holds(freed.slice(0, PAGE_SIZE).unwrap(), stamp), "a page of the guest's was written");
        }
        for _ in 0..count {
            let guest = self.guest.as_ref().unwrap();
            let Ok(shared) = guest.share(DomId::DOM0, 1, Access::ReadWrite) else { break };
            assert!(holds(shared.slice(0, PAGE_SIZE).unwrap(), 0), "not zeroed");
            let stamp = self.stamp();
            write(shared.slice(0, PAGE_SIZE).unwrap(), stamp);
            self.used.push((shared, stamp));
        }
    }

    fn free_all(&mut self) {
        for (taken, stamp) in &self.taken {
            assert!(holds(page(taken), *stamp), "a page of the guest's was written");
        }
        for (used, stamp) in &self.used {
            assert!(holds(used.slice(0, PAGE_SIZE).unwrap(), *stamp), "a page of the guest's was written");
        }
        self.taken.clear();
        self.used.clear();
    }

    /// Ends everything, and returns how many pages the guest has.
    fn end(mut self) -> usize {
        self.free_all();
        self.receiver = None;
        self.sender = None;
        self.dom0 = None;
        self.await_death(DomId::DOM0);
        let guest = self.guest.take().unwrap();
        guest.balloon_in(DomId::DOM0).unwrap();
        let mut pages = Vec::new();
        while let Ok(shared) = guest.share(DomId::DOM0, 1, Access::ReadWrite) {
            pages.push(shared);
        }
        pages.len()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn every_page_is_in_one_hand_whoever_dies_when(script in prop::collection::vec(step(), 0..150)) {
        let all = World::new().end();
        let mut world = World::new();
        script.into_iter().for_each(|each| world.step(each));
        prop_assert_eq!(world.end(), all, "pages that nobody has");
    }
}
