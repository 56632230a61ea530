//! Page transfer on the local hypervisor does what the model of page ownership does, whatever the script.

use grant_table::flip::{Receiver, Sender};
use grant_table::{OwnedPage, PageAcceptor, PageDonor, TransferOp};
use hypervisor::local::{Options, Sandbox};
use proptest::prelude::*;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef};
use std::sync::Arc;
use testkit::page_ownership::{ModelAcceptor, ModelDonor, PageOwnership};

const GUEST: DomId = DomId(1);
const ENTRIES: usize = 6;

#[derive(Clone, Copy, Debug)]
enum Step {
    BalloonOut(usize),
    Provide(usize),
    Populate(usize),
    /// Transfers one of the donor's pages to an entry, and if it is accepted, once more to the next.
    Transfer(usize, usize),
    /// Transfers a page or to an entry that does not exist.
    TransferInvalid(bool),
    /// Drops one of the donor's pages.
    DropSent(usize),
    Take(usize),
    Arm(usize),
    /// Drops one of the acceptor's pages.
    DropTaken(usize),
}

/// What both ends saw.
#[derive(PartialEq, Eq, Debug)]
enum Seen {
    Count(usize),
    Status(Status),
    /// The number that the donor wrote into the page.
    Taken(Option<u32>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0usize..20).prop_map(Step::BalloonOut),
        1 => (0usize..12).prop_map(Step::Provide),
        1 => (0usize..12).prop_map(Step::Populate),
        4 => (any::<usize>(), 0..ENTRIES).prop_map(|(page, entry)| Step::Transfer(page, entry)),
        1 => any::<bool>().prop_map(Step::TransferInvalid),
        1 => any::<usize>().prop_map(Step::DropSent),
        3 => (0..ENTRIES).prop_map(Step::Take),
        2 => (0..ENTRIES).prop_map(Step::Arm),
        2 => any::<usize>().prop_map(Step::DropTaken),
    ]
}

fn number(page: &OwnedPage) -> u32 {
    let mut bytes = [0; 4];
    page.slice(4092, 4).expect("inside").copy_to(&mut bytes);
    u32::from_le_bytes(bytes)
}

/// Carries out the script and returns what was seen after each step.
fn run(acceptor: &dyn PageAcceptor, donor: &dyn PageDonor, script: &[Step]) -> Vec<Seen> {
    let mut entries = acceptor.accept_transfer(DomId::DOM0, ENTRIES).expect("entries");
    let mut sent: Vec<OwnedPage> = Vec::new();
    let mut taken: Vec<OwnedPage> = Vec::new();
    let transfer = |frame: u64, token: u64, gref: GrantRef| {
        let mut ops = [TransferOp { frame, token, domid: GUEST, gref, status: Status::OKAY }];
        donor.transfer(&mut ops).expect("transfer");
        Seen::Status(ops[0].status)
    };
    let mut last_number = 0;
    let mut seen = Vec::new();
    for step in script {
        seen.push(match *step {
            Step::BalloonOut(pages) => {
                Seen::Count(acceptor.balloon_out(DomId::DOM0, pages).expect("balloon_out"))
            }
            Step::Provide(pages) => Seen::Count(acceptor.provide(DomId::DOM0, pages).expect("provide")),
            Step::Populate(pages) => {
                donor.populate(GUEST, pages, &mut sent).expect("populate");
                Seen::Count(sent.len())
            }
            Step::Transfer(page, entry) if !sent.is_empty() => {
                let at = page % sent.len();
                let page = &sent[at];
                last_number += 1;
                page.slice(4092, 4).expect("inside").copy_from(&u32::to_le_bytes(last_number));
                let outcome = transfer(page.frame(), page.token(), entries.refs()[entry]);
                if outcome == Seen::Status(Status::OKAY) {
                    let again = transfer(page.frame(), page.token(), entries.refs()[(entry + 1) % ENTRIES]);
                    assert_eq!(again, Seen::Status(Status::BAD_PAGE), "it is the acceptor's");
                    sent.swap_remove(at);
                }
                outcome
            }
            Step::TransferInvalid(true) => transfer(u64::MAX, 1, entries.refs()[0]),
            Step::TransferInvalid(false) => transfer(0, 1, GrantRef(u32::MAX)),
            Step::DropSent(page) if !sent.is_empty() => {
                sent.swap_remove(page % sent.len());
                Seen::Count(sent.len())
            }
            Step::Take(entry) => {
                let page = entries.take(entry).expect("take");
                let number = page.as_ref().map(number);
                taken.extend(page);
                Seen::Taken(number)
            }
            Step::Arm(entry) => {
                entries.arm(entry);
                Seen::Count(0)
            }
            Step::DropTaken(page) if !taken.is_empty() => {
                taken.swap_remove(page % taken.len());
                Seen::Count(taken.len())
            }
            _ => Seen::Count(0),
        });
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn local_hypervisor_transfers_pages_as_the_model_does(script in proptest::collection::vec(step(), 1..120)) {
        let sandbox = Sandbox::new().expect("a broker");
        let small = Options { arena_pages: 64 };
        // What a new acceptor can give up is what it has.
        let pages = sandbox.join_with(DomId(2), small).expect("joins").balloon_out(DomId::DOM0, 1_000).expect("pages");
        let guest = sandbox.join_with(GUEST, small).expect("joins");
        let dom0 = sandbox.join(DomId::DOM0).expect("joins");
        let model = PageOwnership::new(pages);
        let expected = run(&ModelAcceptor(model.clone()), &ModelDonor(model), &script);
        prop_assert_eq!(run(&*guest, &*dom0, &script), expected);
    }
}

#[test]
fn flipping_over_the_model_moves_every_page_to_and_fro() {
    let model = PageOwnership::new(8);
    let acceptor = Arc::new(ModelAcceptor(model.clone()));
    let mut receiver = Receiver::new(acceptor, DomId::DOM0, 8).expect("entries");
    let mut sender = Sender::new(Arc::new(ModelDonor(model)), GUEST);
    for _ in 0..100 {
        for entry in 0..8 {
            assert!(sender.refill(1, 8).expect("populate") > 0, "as many pages as entries");
            let page = sender.page().expect("a page");
            sender.add(page, receiver.gref(entry));
        }
        sender.flush(|_, status| assert_eq!(status, Status::OKAY)).expect("transfer");
        assert!((0..8).all(|entry| receiver.take(entry).expect("take").is_some()));
        receiver.renew(|_, _| {}).expect("provide");
        assert!(!receiver.is_short());
    }
}
