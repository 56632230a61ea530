//! Entries that are given beside learned ones, compared with a map of what each station's must be.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn station(n: u32) -> Station {
    let [a, b, c, d] = n.to_be_bytes();
    Station::new(Mac::new([2, 0, a, b, c, d]), 0)
}

const LIMITS: Limits = Limits { entries: 64, entries_per_port: 24, age_s: 300 };

#[derive(Clone, Debug)]
enum Step {
    Learn(u32, u16),
    Give(u32, u16, Kind, bool),
    Delete(u32, u16),
    Flush(Option<u16>, Option<Kind>),
    Claim(u32, u16),
    Sweep,
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Dynamic), Just(Kind::Sticky), Just(Kind::Static)];
    let flushed = prop::option::of(kind.clone());
    prop_oneof![
        12 => (0..90u32, 0..4u16).prop_map(|(n, port)| Step::Learn(n, port)),
        4 => (0..90u32, 0..4u16, kind, any::<bool>())
            .prop_map(|(n, port, kind, replaces)| Step::Give(n, port, kind, replaces)),
        2 => (0..90u32, 0..4u16).prop_map(|(n, port)| Step::Delete(n, port)),
        1 => (prop::option::of(0..4u16), flushed).prop_map(|(port, kind)| Step::Flush(port, kind)),
        1 => (0..90u32, 0..4u16).prop_map(|(n, port)| Step::Claim(n, port)),
        1 => Just(Step::Sweep),
        2 => (0..200u32).prop_map(Step::Wait),
    ]
}

/// An entry that was given, and must be there.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Given {
    port: u16,
    kind: Kind,
    seen_s: u32,
}

impl Given {
    fn is_there(&self, now_s: u32) -> bool {
        !self.kind.expires() || now_s - self.seen_s < LIMITS.age_s
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 60 }))]

    /// Entries that were given are there and where they were put, until they are removed or expire, whatever is learned; what is learned
    /// stays within its bounds.
    #[test]
    fn given_entries_stay_and_learned_ones_keep_their_limits(steps in prop::collection::vec(step(), 0..400), seed: u64) {
        let mut fdb = Fdb::new(LIMITS, seed);
        let mut given: HashMap<u32, Given> = HashMap::new();
        let mut now_s = 0;
        for step in steps {
            given.retain(|_, entry| entry.is_there(now_s));
            match step {
                Step::Learn(n, port) => {
                    let learned = fdb.learn(station(n), PortId(port), now_s);
                    if let Some(entry) = given.get_mut(&n) {
                        let expected = match (entry.port == port, entry.kind.stays()) {
                            (true, _) => Learned::Known,
                            (false, true) => Learned::Sticky,
                            (false, false) => Learned::Moved,
                        };
                        prop_assert_eq!(learned, expected);
                        if learned != Learned::Sticky {
                            (entry.port, entry.seen_s) = (port, now_s);
                        }
                    }
                }
                Step::Give(n, port, kind, replaces) => {
                    let before = fdb.entry(station(n), now_s).map(|entry| entry.kind);
                    let added = fdb.add(station(n), (PortId(port), kind), replaces, now_s);
                    match (before, added) {
                        (_, Ok(())) => {
                            prop_assert!(before.is_none() || replaces && before != Some(Kind::Own));
                            given.insert(n, Given { port, kind, seen_s: now_s });
                        }
                        (Some(Kind::Own), error) => prop_assert_eq!(error, Err(FdbError::Own)),
                        (Some(_), error) => prop_assert_eq!((error, replaces), (Err(FdbError::Exists), false)),
                        (None, error) => prop_assert_eq!(error, Err(FdbError::Full)),
                    }
                }
                Step::Delete(n, port) => {
                    let at = fdb.entry(station(n), now_s).filter(|entry| entry.port.0 == port);
                    let expected = match at.map(|entry| entry.kind) {
                        None => Err(FdbError::NoSuchEntry),
                        Some(Kind::Own) => Err(FdbError::Own),
                        Some(_) => Ok(()),
                    };
                    prop_assert_eq!(fdb.delete(station(n), PortId(port), now_s), expected);
                    if expected.is_ok() {
                        given.remove(&n);
                    }
                }
                Step::Flush(port, kind) => {
                    let is_one = |at: u16, of: Kind| {
                        of != Kind::Own && port.is_none_or(|port| port == at) && kind.is_none_or(|kind| kind == of)
                    };
                    fdb.flush(|_, at, of| is_one(at.0, of));
                    given.retain(|_, entry| !is_one(entry.port, entry.kind));
                }
                Step::Claim(n, port) => {
                    let is_claimed = fdb.claim(station(n), PortId(port));
                    let holder = given.get(&n).filter(|entry| !entry.kind.expires()).copied();
                    if let Some(holder) = holder {
                        prop_assert_eq!(is_claimed, holder.port == port);
                    } else if is_claimed {
                        given.insert(n, Given { port, kind: Kind::Own, seen_s: 0 });
                    }
                }
                Step::Sweep => fdb.sweep(now_s),
                Step::Wait(seconds) => now_s += seconds,
            }
            prop_assert!(fdb.learned() <= LIMITS.entries);
            for port in 0..4 {
                prop_assert!(fdb.count(port) <= LIMITS.entries_per_port);
            }
            for (n, entry) in given.iter().filter(|(_, entry)| entry.is_there(now_s)) {
                let found = fdb.entry(station(*n), now_s).map(|found| (found.port.0, found.kind));
                prop_assert_eq!(found, Some((entry.port, entry.kind)), "station {}", n);
                prop_assert_eq!(fdb.lookup(station(*n), now_s), Some(PortId(entry.port)));
            }
        }
        let (learned, others) = fdb.entries(0).partition::<Vec<_>, _>(|entry| entry.kind == Kind::Learned);
        prop_assert_eq!((learned.len(), others.len()), (fdb.learned, fdb.given));
    }
}

#[test]
fn entry_that_cannot_be_given_is_refused_as_linuxs_bridge_does() {
    let mut fdb = Fdb::new(LIMITS, 7);
    let group = Station::new(Mac::new([1, 0, 0x5e, 0, 0, 1]), 0);
    let mut give = |station, kind| fdb.add(station, (PortId(1), kind), false, 0);
    assert_eq!(give(group, Kind::Static), Err(FdbError::Address));
    assert_eq!(give(Station::new(Mac::ZERO, 0), Kind::Static), Err(FdbError::Address));
    assert_eq!([Kind::Own, Kind::Learned].map(|kind| give(station(1), kind)), [Err(FdbError::Kind); 2]);
    assert_eq!(give(station(1), Kind::Static), Ok(()));
    assert_eq!(give(station(1), Kind::Static), Err(FdbError::Exists));
    assert_eq!(fdb.delete(station(1), PortId(2), 0), Err(FdbError::NoSuchEntry));
    assert_eq!(fdb.delete(station(2), PortId(1), 0), Err(FdbError::NoSuchEntry));
    assert_eq!(fdb.delete(station(1), PortId(1), 0), Ok(()));
    assert_eq!(fdb.learn(station(3), PortId(1), 0), Learned::New);
    assert_eq!(
        fdb.add(station(3), (PortId(2), Kind::Static), false, 0),
        Err(FdbError::Exists),
        "a learned one"
    );
    assert_eq!(fdb.add(station(3), (PortId(2), Kind::Static), true, 0), Ok(()));
    assert_eq!(
        fdb.add(station(3), (PortId(1), Kind::Dynamic), false, 999),
        Err(FdbError::Exists),
        "it stays"
    );
    let full = (100..).map(|n| fdb.add(station(n), (PortId(1), Kind::Dynamic), false, 0));
    assert_eq!(full.take(200).find(Result::is_err), Some(Err(FdbError::Full)));
    assert_eq!(fdb.learn(station(5), PortId(2), 0), Learned::New);
}

#[test]
fn bounds_of_a_table_change_while_it_is_used() {
    let mut fdb = Fdb::new(Limits { entries: 8, entries_per_port: 4096, age_s: 300 }, 7);
    let learn_all = |fdb: &mut Fdb| {
        for n in 0..100 {
            fdb.learn(station(n), PortId(0), 0);
        }
    };
    learn_all(&mut fdb);
    assert_eq!(fdb.add(station(500), (PortId(3), Kind::Static), false, 0), Ok(()));
    assert_eq!((fdb.learned(), fdb.len()), (8, 9));
    fdb.set_limits(Limits { entries: 4096, ..fdb.limits() });
    learn_all(&mut fdb);
    assert_eq!((fdb.learned(), fdb.lookup(station(500), 0)), (100, Some(PortId(3))));
    fdb.set_limits(Limits { entries: 50, age_s: 10, ..fdb.limits() });
    assert_eq!(fdb.learned(), 100, "they expire");
    assert_eq!(fdb.learn(station(200), PortId(0), 0), Learned::Full);
    assert_eq!((fdb.lookup(station(1), 9), fdb.lookup(station(1), 10)), (Some(PortId(0)), None));
    fdb.sweep(10);
    assert_eq!((fdb.learned(), fdb.len()), (0, 1));
    fdb.set_limits(Limits { age_s: 0, ..fdb.limits() });
    assert_eq!(fdb.learn(station(1), PortId(0), 10), Learned::New);
    assert_eq!((fdb.lookup(station(1), 10), fdb.lookup(station(500), 10)), (None, Some(PortId(3))));
}
