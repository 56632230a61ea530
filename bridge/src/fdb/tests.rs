//! Compares the database with a `HashMap`, and tests its bounds.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn station(n: u32) -> Station {
    let [a, b, c, d] = n.to_be_bytes();
    Station::new(Mac::new([2, 0, a, b, c, d]), 0)
}

#[derive(Clone, Debug)]
enum Step {
    Learn(u32, u16),
    Lookup(u32),
    Forget(u16),
    Sweep,
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..60u32, 0..5u16).prop_map(|(n, port)| Step::Learn(n, port)),
        8 => (0..60u32).prop_map(Step::Lookup),
        1 => (0..5u16).prop_map(Step::Forget),
        1 => Just(Step::Sweep),
        2 => (0..200u32).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn database_gives_the_results_of_a_hash_map(steps in prop::collection::vec(step(), 0..300), seed: u64) {
        let limits = Limits { entries: 1024, entries_per_port: 1024, age_s: 300 };
        let mut fdb = Fdb::new(limits, seed);
        let mut model: HashMap<u32, (u16, u32)> = HashMap::new();
        let mut now_s = 0;
        for step in steps {
            match step {
                Step::Learn(n, port) => {
                    let before = model.get(&n).copied().filter(|(_, seen_s)| now_s - seen_s < 300);
                    let expected = match before {
                        None => Learned::New,
                        Some((old, _)) if old == port => Learned::Known,
                        Some(_) => Learned::Moved,
                    };
                    prop_assert_eq!(fdb.learn(station(n), PortId(port), now_s), expected);
                    model.insert(n, (port, now_s));
                }
                Step::Lookup(n) => {
                    let known = model.get(&n).filter(|(_, seen_s)| now_s - seen_s < 300);
                    prop_assert_eq!(fdb.lookup(station(n), now_s), known.map(|(port, _)| PortId(*port)));
                }
                Step::Forget(port) => {
                    fdb.forget(PortId(port));
                    model.retain(|_, (at, _)| *at != port);
                }
                Step::Sweep => {
                    fdb.sweep(now_s);
                    model.retain(|_, (_, seen_s)| now_s - *seen_s < 300);
                    prop_assert_eq!(fdb.len(), model.len());
                }
                Step::Wait(seconds) => now_s += seconds,
            }
        }
        let shown: HashMap<Station, PortId> = fdb.entries(now_s).map(|e| (e.station, e.port)).collect();
        let known: HashMap<Station, PortId> = model.iter().filter(|(_, (_, seen_s))| now_s - seen_s < 300)
            .map(|(n, (port, _))| (station(*n), PortId(*port))).collect();
        prop_assert_eq!(shown, known);
    }

    #[test]
    fn limits_hold_for_any_stations(
        frames in prop::collection::vec((0..500u32, 0..3u16, 0..3u32), 0..800), seed: u64,
    ) {
        let mut fdb = Fdb::new(Limits { entries: 100, entries_per_port: 60, age_s: 10 }, seed);
        let mut now_s = 0;
        for (n, port, wait_s) in frames {
            now_s += wait_s / 2;
            fdb.learn(station(n), PortId(port), now_s);
            prop_assert!(fdb.len() <= 100);
        }
        for port in 0..3 {
            prop_assert!(fdb.entries(now_s).filter(|entry| entry.port == PortId(port)).count() <= 60);
        }
        fdb.sweep(now_s + 10);
        prop_assert!(fdb.is_empty() && fdb.per_port.iter().all(|count| *count == 0));
    }
}

#[test]
fn flood_at_one_port_does_not_affect_other_ports() {
    let mut fdb = Fdb::new(Limits::default(), 0x5eed);
    assert_eq!(fdb.learn(station(u32::MAX), PortId(1), 0), Learned::New);
    for n in 0..if cfg!(miri) { 5_000 } else { 100_000 } {
        fdb.learn(station(n), PortId(0), 0);
    }
    assert_eq!(fdb.len(), 1 + 4096);
    assert_eq!(fdb.lookup(station(u32::MAX), 0), Some(PortId(1)));
    for n in 200_000..201_000 {
        assert_eq!(fdb.learn(station(n), PortId(2), 0), Learned::New);
    }
}

#[test]
fn table_takes_all_stations_up_to_its_limit() {
    for seed in 0..20 {
        let mut fdb = Fdb::new(Limits { entries: 4096, entries_per_port: 4096, age_s: 300 }, seed);
        assert!((0..4096).all(|n| fdb.learn(station(n), PortId(0), 0) == Learned::New));
    }
}

#[test]
fn group_and_zero_addresses_are_not_learned() {
    let mut fdb = Fdb::new(Limits::default(), 1);
    for bytes in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0; 6]] {
        assert_eq!(fdb.learn(Station::new(Mac::new(bytes), 0), PortId(0), 0), Learned::NotStation);
    }
    assert!(fdb.is_empty());
}

#[test]
fn same_address_in_two_vlans_is_two_stations() {
    let mut fdb = Fdb::new(Limits::default(), 1);
    let mac = Mac::new([2, 0, 0, 0, 0, 1]);
    fdb.learn(Station::new(mac, 5), PortId(3), 0);
    assert_eq!(fdb.lookup(Station::new(mac, 6), 0), None);
    assert_eq!(fdb.lookup(Station::new(mac, 5), 0), Some(PortId(3)));
    assert_eq!(Station::new(mac, 5).mac(), mac);
}

/// Two ports that have filled the table make no port's stations unknown: 8,192 addresses are no more than the table's.
#[test]
fn full_table_gives_the_place_of_the_port_that_has_most() {
    let mut fdb = Fdb::new(Limits { entries: 1024, entries_per_port: 512, age_s: 300 }, 0x5eed);
    for n in 0..512 {
        assert_eq!(fdb.learn(station(n), PortId(0), 0), Learned::New);
        assert_eq!(fdb.learn(station(1000 + n), PortId(1), 0), Learned::New);
    }
    assert_eq!((fdb.len(), fdb.learn(station(5000), PortId(0), 0)), (1024, Learned::Full));
    for n in 0..10 {
        assert_eq!(fdb.learn(station(2000 + n), PortId(2), 0), Learned::New);
    }
    assert_eq!(fdb.len(), 1024);
    let of = |port| fdb.entries(0).filter(|entry| entry.port == PortId(port)).count();
    assert_eq!([of(0), of(1), of(2)], [507, 507, 10]);
    // The two get nothing back from each other, and nothing of the third.
    assert_eq!(fdb.learn(station(5000), PortId(0), 0), Learned::Full);
    assert!((0..10).all(|n| fdb.lookup(station(2000 + n), 0) == Some(PortId(2))));
}

#[test]
fn static_address_stays_at_its_port_and_is_not_counted() {
    let limits = Limits { entries: 16, entries_per_port: 2, age_s: 300 };
    let mut fdb = Fdb::new(limits, 7);
    assert_eq!(fdb.learn(station(1), PortId(1), 0), Learned::New);
    assert!((1..6).all(|n| fdb.claim(station(n), PortId(0))), "from the one that had learned it too");
    assert!(fdb.claim(station(1), PortId(0)) && !fdb.claim(station(1), PortId(1)));
    assert_eq!(fdb.learn(station(1), PortId(1), 1), Learned::Sticky);
    assert_eq!(fdb.learn(station(1), PortId(0), 1), Learned::Known);
    assert_eq!(fdb.learn(station(1), PortId(1), 1), Learned::Sticky);
    assert_eq!(
        [10, 11, 12].map(|n| fdb.learn(station(n), PortId(0), 1)),
        [Learned::New, Learned::New, Learned::Full]
    );
    fdb.sweep(10_000);
    assert_eq!((fdb.len(), fdb.lookup(station(1), 10_000)), (5, Some(PortId(0))));
    fdb.forget(PortId(0));
    assert_eq!((fdb.len(), fdb.lookup(station(1), 10_000)), (0, None));
}

#[test]
fn static_addresses_have_places_however_full_the_table_is() {
    let mut fdb = Fdb::new(Limits { entries: 8, entries_per_port: 8, age_s: 300 }, 7);
    assert!((0..8).all(|n| fdb.learn(station(n), PortId(0), 0) == Learned::New));
    let claimed = (100..108).filter(|n| fdb.claim(station(*n), PortId(1))).count();
    assert_eq!(claimed, 8);
    assert!((100..108).all(|n| fdb.lookup(station(n), 0) == Some(PortId(1))));
}
