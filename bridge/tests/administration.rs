//! What an administrator asks of a running bridge: entries of its forwarding database, settings, and what its ports have.

use bridge::{
    Awaited, Bridge, BridgeSetting, Caps, Config, Error, FdbEntry, FdbError, FdbFilter, FdbKind, Flag, Flags,
    Given, GroupFwdMask, Mirror, PortSettings, Setting, StormLimits, fdb::Mac, port::pair::Pair,
};

fn attach(bridge: &Bridge, name: &str, settings: PortSettings) -> Pair {
    let (end, port) = Pair::new(Caps::plain(1500), 16).unwrap();
    bridge.attach_with(name, Box::new(port), settings).unwrap();
    end
}

fn entry(n: u8, port: &str, kind: FdbKind) -> FdbEntry {
    FdbEntry { mac: Mac::new([2, 0, 0, 0, 0, n]), vlan: None, port: port.into(), kind }
}

#[test]
fn entries_are_given_listed_and_removed_by_the_names_of_ports() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let own = PortSettings { address: Some(Mac::new([2, 0, 0, 0, 0, 7])), ..PortSettings::default() };
    let _ends = [attach(&bridge, "one", PortSettings::default()), attach(&bridge, "two", own)];
    bridge.fdb_add(entry(1, "one", FdbKind::Static)).unwrap();
    bridge.fdb_add(entry(2, "one", FdbKind::Sticky)).unwrap();
    let refused = |entry| match bridge.fdb_add(entry) {
        Err(Error::Fdb { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(entry(1, "two", FdbKind::Dynamic)), FdbError::Exists);
    assert_eq!(refused(entry(7, "one", FdbKind::Static)), FdbError::Own);
    assert_eq!(refused(entry(3, "one", FdbKind::Own)), FdbError::Kind);
    assert!(matches!(bridge.fdb_add(entry(3, "three", FdbKind::Static)), Err(Error::NoSuchPort(_))));
    bridge.fdb_replace(entry(1, "two", FdbKind::Dynamic)).unwrap();
    let rows = || {
        let row = |row: bridge::FdbRow| (row.mac.bytes()[5], row.port, row.kind);
        let mut rows: Vec<_> = bridge.fdb().unwrap().into_iter().map(row).collect();
        rows.sort();
        rows
    };
    let two = |n, kind| (n, "two".to_owned(), kind);
    let all = [two(1, FdbKind::Dynamic), (2, "one".to_owned(), FdbKind::Sticky), two(7, FdbKind::Own)];
    assert_eq!(rows(), all);
    let mac = Mac::new([2, 0, 0, 0, 0, 2]);
    assert!(matches!(
        bridge.fdb_delete(mac, None, "two"),
        Err(Error::Fdb { error: FdbError::NoSuchEntry, .. })
    ));
    bridge.fdb_delete(mac, Some(0), "one").unwrap();
    let of_one = FdbFilter { port: Some("one".into()), ..FdbFilter::default() };
    assert_eq!(bridge.fdb_flush(of_one).unwrap(), 0);
    assert_eq!(bridge.fdb_flush(FdbFilter::default()).unwrap(), 1);
    assert_eq!(rows(), [two(7, FdbKind::Own)]);
    let unknown = FdbFilter { port: Some("three".into()), ..FdbFilter::default() };
    assert!(matches!(bridge.fdb_flush(unknown), Err(Error::NoSuchPort(_))));
}

#[test]
fn settings_of_a_bridge_and_of_its_ports_are_changed_and_read() {
    let mask = GroupFwdMask::new(0x4000).unwrap();
    let bridge = Bridge::start(Config { group_fwd_mask: mask, ..Config::default() }).unwrap();
    let info = bridge.info().unwrap();
    assert_eq!((info.ageing_time_s, info.fdb_max_learned, info.group_fwd_mask), (300, 8192, mask));
    bridge.set_bridge(BridgeSetting::AgeingTime(30)).unwrap();
    bridge.set_bridge(BridgeSetting::FdbMaxLearned(100)).unwrap();
    bridge.set_bridge(BridgeSetting::GroupFwdMask(GroupFwdMask::default())).unwrap();
    let info = bridge.info().unwrap();
    assert_eq!((info.ageing_time_s, info.fdb_max_learned, info.group_fwd_mask.bits()), (30, 100, 0));
    let error = bridge.set_bridge(BridgeSetting::FdbMaxLearned(0)).unwrap_err().to_string();
    assert_eq!(error, "fdb_max_learned: found 0, expected a number of entries from 1 to 1048576");

    let _end =
        attach(&bridge, "one", PortSettings { vlans: "10p/20".parse().unwrap(), ..PortSettings::default() });
    let mut flags = Flags::default();
    flags.set(Flag::Isolated, true);
    bridge.set("one", Setting::Flags(flags)).unwrap();
    bridge.set("one", Setting::Storm(StormLimits::GUEST)).unwrap();
    let settings = &bridge.ports().unwrap()[0].settings;
    let found = (settings.flags, settings.storm, settings.vlans.to_string());
    assert_eq!(found, (flags, StormLimits::GUEST, "10p/20".to_owned()));
}

#[test]
fn wire_has_neither_entries_nor_settings() {
    let wire = Bridge::start(Config::wire("w")).unwrap();
    let _end = attach(&wire, "one", PortSettings::default());
    let errors = [
        wire.fdb_add(entry(1, "one", FdbKind::Static)).unwrap_err(),
        wire.fdb_delete(Mac::new([2; 6]), None, "one").unwrap_err(),
        wire.fdb_flush(FdbFilter::default()).unwrap_err(),
        wire.set_bridge(BridgeSetting::AgeingTime(1)).unwrap_err(),
        wire.info().unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, Error::Wire(_))), "{errors:?}");
}

#[test]
fn port_has_again_what_it_had_when_it_comes_and_another_of_its_name_has_not() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let address = Some(Mac::new([2, 0, 0, 0, 0, 7]));
    let of = |address| PortSettings { address, ..PortSettings::default() };
    let _one = attach(&bridge, "one", of(None));
    let again = |address, given| bridge.give_again(Awaited { address, given });
    let at = |n, port| Given::Entry(entry(n, port, FdbKind::Static));
    again(None, at(1, "one")).unwrap();
    (2..6).for_each(|n| again(address, at(n, "vif1.0")).unwrap());
    again(None, at(6, "vif2.0")).unwrap();
    let select_src = vec!["vif2.0".to_owned()];
    let mirror = Mirror { select_src, output: "vif1.0".into(), ..Mirror::default() };
    again(address, Given::Mirror("watch".into(), mirror.clone())).unwrap();
    again(address, Given::Mirror("gone".into(), mirror)).unwrap();
    assert_eq!(bridge.awaited().unwrap().len(), 7);
    let given = || {
        let rows = bridge.fdb().unwrap().into_iter().filter(|row| row.kind == FdbKind::Static);
        let mut rows: Vec<_> = rows.map(|row| (row.mac.bytes()[5], row.port)).collect();
        rows.sort();
        rows
    };
    assert_eq!(given(), [(1, "one".to_owned())]);

    // What is deleted, flushed or given to another port meanwhile does not come again.
    let mac = |n| Mac::new([2, 0, 0, 0, 0, n]);
    bridge.fdb_delete(mac(2), None, "vif1.0").unwrap();
    assert!(matches!(bridge.fdb_delete(mac(2), None, "vif1.0"), Err(Error::NoSuchPort(_))));
    bridge.fdb_add(entry(3, "one", FdbKind::Static)).unwrap();
    let of_two = FdbFilter { port: Some("vif2.0".into()), ..FdbFilter::default() };
    assert_eq!(bridge.fdb_flush(of_two).unwrap(), 1);
    bridge.mirror_delete("gone").unwrap();
    assert!(matches!(bridge.mirror_delete("gone"), Err(Error::Mirror { .. })));
    let _two = attach(&bridge, "vif1.0", of(address));
    let (one, vif) = ("one".to_owned(), "vif1.0".to_owned());
    assert_eq!(given(), [(1, one.clone()), (3, one.clone()), (4, vif.clone()), (5, vif)]);
    assert_eq!(bridge.mirrors().unwrap()[0].mirror.select_src, ["vif2.0"]);
    assert!(bridge.awaited().unwrap().is_empty());

    // Another guest's vif of the same name.
    again(address, at(8, "vif3.0")).unwrap();
    let _other = attach(&bridge, "vif3.0", of(Some(mac(9))));
    assert!(bridge.awaited().unwrap().is_empty());
    assert!(given().iter().all(|(n, _)| *n != 8));
    assert!(again(None, at(8, "vif3.0")).is_err());
}
