//! The lines of docs/networks.md, as an administrator types them.

mod common;

use common::netns::{Namespace, two_guests};
use common::program::run;
use common::{Machine, eventually};

/// The words of a line, of which one in single quotes may have blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_ascii_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

#[test]
fn lines_of_the_page_on_networks_do_what_they_say() {
    let machine = Machine::new();
    machine.create("web", "vif = ['mac=00:16:3e:00:00:01']");
    let page = include_str!("../../docs/networks.md");
    let lines: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("$ xpv ")).collect();
    assert!(lines.len() >= 5, "{lines:?}");
    for line in &lines {
        machine.ok(words(line));
    }
    let nodes = machine.nodes();
    let of = |devid: &str, key: &str| {
        let end = format!("/{devid}/{key}");
        let found = nodes.iter().find(|(path, _)| path.contains("/backend/vif/") && path.ends_with(&end));
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!((of("1", "ip"), of("1", "lock")), (Some("10.0.0.5 2001:db8:1::/64"), None));
    assert_eq!((of("2", "ip"), of("2", "lock")), (None, Some("off")));
    assert_eq!((of("0", "ip"), of("0", "lock"), of("0", "vlan")), (None, None, None), "the default again");
    assert_eq!(
        (of("5", "isolated"), of("5", "mcast_flood"), of("0", "isolated")),
        (Some("on"), Some("off"), None)
    );
    let given = ["guard", "locked", "storm_broadcast", "storm_unknown_unicast"].map(|key| of("6", key));
    assert_eq!(given, [Some("on"), Some("on"), Some("200"), Some("none")]);
    let rates = (of("7", "rate"), of("7", "rate-in"), of("0", "rate-in"), of("0", "rate-in-packets"));
    assert_eq!(rates, (Some("625000,50000"), Some("625000,50000"), None, None));
    assert_eq!((of("3", "vlan"), of("4", "vlan")), (Some("10"), Some("10p/20-29")));
}

/// Whether bob answers.
fn reaches(alice: &Namespace) -> bool {
    let mut ping = alice.program("ping", "iputils-ping");
    ping.args(["-c", "1", "-W", "1", "10.77.0.2"]).output().unwrap().status.success()
}

#[test]
fn guests_of_one_vlan_reach_each_other_alone() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    let set = |guest, vlan| machine.ok(["network-set", guest, "0", &format!("vlan={vlan}")]);
    let vlan = || {
        let rows: serde_json::Value =
            serde_json::from_str(&machine.ok(["network-list", "alice", "--json"])).unwrap();
        (rows[0]["vlan"].clone(), rows[0]["stats"]["drops"]["vlan"].clone())
    };
    assert!(reaches(&alice));
    set("alice", "10");
    eventually("they are in two VLANs", || !reaches(&alice));
    set("bob", "10");
    eventually("they are in one VLAN", || reaches(&alice));
    assert_eq!(vlan(), ("10".into(), 0.into()));
    set("alice", "20p/10");
    eventually("alice's frames have to have tags there", || !reaches(&alice));
    set("bob", "");
    set("alice", "");
    eventually("they are in none", || reaches(&alice));
    let errors = machine.fails(["network-set", "alice", "0", "vlan=4096"]);
    assert!(errors.contains("vif: vlan: found \"4096\", expected a VLAN from 1 to 4094"), "{errors}");
}

#[test]
fn locked_guest_and_one_with_a_storm_limit_send_no_more_than_they_may() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    let list = || -> serde_json::Value {
        serde_json::from_str(&machine.ok(["network-list", "alice", "--json"])).unwrap()
    };
    let drops = |reason: &str| list()[0]["stats"]["drops"][reason].as_u64().unwrap();
    machine.ok(["network-set", "alice", "0", "storm_broadcast=1", "storm_multicast=0"]);
    eventually("the limit is in force", || machine.log().contains("storm limits changed"));
    assert_eq!(list()[0]["storm"], serde_json::json!({"storm_broadcast": 1, "storm_multicast": null}));
    let mut ping = alice.program("ping", "iputils-ping");
    ping.args(["-b", "-c", "20", "-i", "0.01", "-W", "1", "10.77.0.255"]).output().unwrap();
    eventually("broadcasts beyond it are dropped", || drops("broadcast") >= 10);
    machine.ok([
        "network-set",
        "alice",
        "0",
        "storm_broadcast=",
        "storm_multicast=",
        "lock=off",
        "locked=on",
        "guard=on",
    ]);
    eventually("the flags are in force", || machine.log().contains("flags changed"));
    assert!(reaches(&alice), "its own address is known there");
    run(alice.program("ip", "iproute2").args(["link", "set", "eth0", "address", "02:00:00:00:00:77"]));
    assert!(!reaches(&alice));
    assert!(drops("locked") > 0);
    machine.ok(["network-set", "alice", "0", "locked="]);
    eventually("it is learned", || reaches(&alice));
    let errors = machine.fails(["network-set", "alice", "0", "storm_broadcast=5/s"]);
    assert!(errors.contains("vif: storm_broadcast: found \"5/s\", expected a number of frames"), "{errors}");
}

#[test]
fn isolated_guests_do_not_reach_each_other() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    machine.ok(["network-set", "alice", "0", "isolated=on"]);
    eventually("the flag is in force", || machine.log().contains("flags changed"));
    assert!(reaches(&alice), "one of them alone");
    machine.ok(["network-set", "bob", "0", "isolated=on"]);
    eventually("both are isolated", || !reaches(&alice));
    let rows: serde_json::Value =
        serde_json::from_str(&machine.ok(["network-list", "alice", "--json"])).unwrap();
    assert_eq!(rows[0]["flags"], serde_json::json!({"isolated": true}));
    machine.ok(["network-set", "bob", "0", "isolated="]);
    eventually("one of them is again", || reaches(&alice));
    let errors = machine.fails(["network-set", "alice", "0", "isolated=1"]);
    assert!(errors.contains("vif: isolated: found \"1\", expected on or off"), "{errors}");
}
