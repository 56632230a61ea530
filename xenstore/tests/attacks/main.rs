//! What one guest may cost the others: each attack is made on a running store, while dom0 and other guests use it.

#[path = "../common/mod.rs"]
mod common;

mod attacker;

use std::time::{Duration, Instant};

use common::{Running, bounded};
use ring_abi::xs_wire::MessageType;
use xenstore::wire::Message;
use xenstore::{Access, Client, DomId, Nodes, Permission};

use attacker::Attacker;

/// The longest that a turn of the store's loop may take of its thread's processor time; code that is not optimized takes
/// several times as long for one request.
const LONGEST_TURN: Duration = Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 10 });
/// What somebody else waits for a reply at most, on a machine that is busy with the attack.
const WAIT: Duration = Duration::from_secs(1);

/// A store with guests 1 and 2, which own their homes.
fn guests() -> (Running, Client) {
    let running = Running::new();
    let mut dom0 = running.dom0();
    for domid in 1..=2 {
        let home = format!("/local/domain/{domid}");
        dom0.mkdir(&home).unwrap();
        dom0.set_perms(&home, &[Permission::new(DomId(domid), Access::None)]).unwrap();
    }
    (running, dom0)
}

/// Floods a store with a request on all of guest 1's connections, and has dom0, guest 2 and the introducer use it meanwhile.
fn others_are_served(prepare: impl FnOnce(&Attacker), request: Message) {
    let (running, mut dom0) = guests();
    let mut other = running.domain(2);
    let attacker = Attacker::new(&running.store.handle(), 1);
    prepare(&attacker);
    let flood = attacker.flood(request);
    let mut longest = Duration::ZERO;
    for n in 0..100 {
        // The flood goes on meanwhile.
        let moved = flood.moved();
        let start = Instant::now();
        dom0.write("/tool/x", n.to_string()).unwrap();
        other.write("x", "").unwrap();
        drop(bounded(Client::new(running.stream(2))));
        longest = longest.max(start.elapsed());
        while flood.moved() == moved {
            assert!(start.elapsed() < common::BOUND, "the flood has ended");
            std::thread::yield_now();
        }
    }
    let turn = running.store.handle().longest_turn().get();
    println!("three requests of others took {longest:?} at most, the longest turn {turn:?}");
    assert!(longest < 3 * WAIT, "others wait for {longest:?}");
    assert!(turn < LONGEST_TURN, "a turn takes {turn:?}");
}

fn request(kind: MessageType, payload: impl Into<Vec<u8>>) -> Message {
    Message::new(kind, 1, 0, payload.into())
}

#[test]
fn guest_with_many_connections_is_granted_one_guests_quotas() {
    let (running, mut dom0) = guests();
    let granted = Attacker::new(&running.store.handle(), 1).take_all();
    assert_eq!((granted.watches, granted.transactions), (128, 10));
    // Each write takes its bytes twice: in the transaction's log and in its tree.
    let most = 2_621_440 / 2 / 2000;
    assert!(granted.writes > 100 && granted.writes < most, "{} writes", granted.writes);
    // dom0 and another guest have theirs.
    let mut other = running.domain(2);
    other.watch("x", "t").unwrap();
    other.transaction(|tx| tx.write("x", "")).unwrap();
    dom0.watch("/local/domain/1", "t").unwrap();
    assert_eq!(dom0.get_quota(Some(DomId(1)), "watches").unwrap(), 128);
}

#[test]
fn writes_that_fire_every_watch_delay_nobody() {
    let take_all = |attacker: &Attacker| assert_eq!(attacker.take_all().watches, 128);
    others_are_served(take_all, request(MessageType::Write, *b"v\0x"));
}

#[test]
fn transactions_that_are_begun_without_end_delay_nobody() {
    others_are_served(|_| {}, request(MessageType::TransactionStart, *b"\0"));
}

#[test]
fn deep_paths_delay_nobody() {
    others_are_served(|_| {}, request(MessageType::Mkdir, ["a/".repeat(900).as_bytes(), b"a\0"].concat()));
}

#[test]
fn listings_of_a_full_node_delay_nobody() {
    let fill = |attacker: &Attacker| {
        let mut client = attacker.client(0);
        for n in 0..400 {
            client.mkdir(&format!("d/{n}")).unwrap();
        }
    };
    others_are_served(fill, request(MessageType::Directory, *b"d\0"));
}

#[test]
fn largest_commits_delay_nobody() {
    let (running, mut dom0) = guests();
    let mut other = running.domain(2);
    let attacker = Attacker::new(&running.store.handle(), 1);
    let mut client = attacker.client(0);
    // As many as a commit of twenty nodes may fire.
    (0..20).for_each(|token| client.watch("d", &token.to_string()).unwrap());
    for depth in [1, 900] {
        let below = "d/".repeat(depth);
        // As many changes as the quota allows, which are counted by a transaction that does not end well.
        let mut most = 0;
        let beyond = client.transaction(|tx| {
            for n in 0..100_000 {
                tx.write(&format!("{below}{}", n % 20), n.to_string())?;
                most = n + 1;
            }
            Ok(())
        });
        assert!(beyond.is_err() && most > 4, "{most} changes");
        for _ in 0..5 {
            client
                .transaction(|tx| {
                    (0..most).try_for_each(|n| tx.write(&format!("{below}{}", n % 20), n.to_string()))
                })
                .unwrap();
            // Events that do not fit are told as lost, which is an error.
            while !matches!(client.poll_event(), Ok(None)) {}
        }
    }
    dom0.write("/tool/x", "").unwrap();
    other.write("x", "").unwrap();
    let turn = running.store.handle().longest_turn().get();
    println!("the longest turn {turn:?}");
    assert!(turn < LONGEST_TURN, "a turn takes {turn:?}");
}
