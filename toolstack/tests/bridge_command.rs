//! `xpv bridge`: bridges, ports, stations and VLANs of dom0, shown as bridge(8) shows those of the kernel, and changed.

mod common;

use std::collections::BTreeSet;

use common::netns::{Namespace, two_guests};
use common::program::{program, run};
use common::{Machine, eventually};
use serde_json::{Value, json};

/// A machine with two taps: tests share a network namespace.
fn with_taps(one: &str, other: &str) -> Machine {
    let ports = format!("['tap:{one}', 'tap:{other},vlan=10p/20-29,isolated=on']");
    Machine::with(&format!(
        "[[bridges]]
name = 'xenbr0'
ports = {ports}
"
    ))
}

fn json(machine: &Machine, words: &str) -> Value {
    let words = ["bridge", "--json"].into_iter().chain(words.split_ascii_whitespace());
    serde_json::from_str(&machine.ok(words)).unwrap()
}

fn change(machine: &Machine, words: &str) {
    machine.ok(["bridge"].into_iter().chain(words.split_ascii_whitespace()));
}

fn refused(machine: &Machine, words: &str) -> String {
    machine.fails(["bridge"].into_iter().chain(words.split_ascii_whitespace()))
}

/// Whether bob answers.
fn reaches(alice: &Namespace) -> bool {
    let mut ping = alice.program("ping", "iputils-ping");
    ping.args(["-c", "1", "-W", "1", "10.77.0.2"]).output().unwrap().status.success()
}

fn row<'a>(rows: &'a Value, key: &str, value: &str) -> &'a Value {
    let found = rows.as_array().unwrap().iter().find(|row| row[key] == value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {rows}"))
}

fn keys(row: &Value) -> BTreeSet<&String> {
    row.as_object().unwrap().keys().collect()
}

#[test]
fn what_is_shown_has_the_shapes_of_the_kernels_bridge() {
    let machine = with_taps("shapes0", "host1");
    let ip = |words: &str| run(program("ip", "iproute2").args(words.split_ascii_whitespace()));
    let kernel = |words: &str| {
        let words = words.split_ascii_whitespace();
        let output = program("bridge", "iproute2").args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    ip("link add kbr0 type bridge");
    ip("link add port0 type veth peer name port1");
    ip("link set port0 master kbr0");
    let fdb = "fdb add 00:16:3e:00:00:77 dev port0 master static";
    run(program("bridge", "iproute2").args(fdb.split_ascii_whitespace()));
    change(&machine, "fdb add 00:16:3e:00:00:77 dev shapes0 master static vlan 0");

    let (theirs, ours) = (kernel("-j -d link"), json(&machine, "link"));
    let (theirs, ours) = (row(&theirs, "ifname", "port0"), row(&ours, "ifname", "host1"));
    assert!(keys(ours).is_subset(&keys(theirs)), "{ours}\n{theirs}");
    assert_eq!((&ours["master"], &ours["isolated"]), (&json!("xenbr0"), &json!(true)));
    let (theirs, ours) = (kernel("-j -s fdb show br kbr0"), json(&machine, "fdb show br xenbr0"));
    let (theirs, ours) = (row(&theirs, "mac", "00:16:3e:00:00:77"), row(&ours, "mac", "00:16:3e:00:00:77"));
    assert!(keys(ours).is_subset(&keys(theirs)), "{ours}\n{theirs}");
    for key in ["state", "flags"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    // As iproute2's bridge/vlan.c has them: not every kernel has VLANs of bridges.
    let own = json!(["PVID", "Egress Untagged"]);
    let vlans = json!([{"vlan": 10, "flags": own}, {"vlan": 20, "vlanEnd": 29}]);
    assert_eq!(row(&json(&machine, "vlan"), "ifname", "host1")["vlans"], vlans);
}

#[test]
fn stations_and_ports_are_changed_while_guests_talk() {
    let machine = Machine::with("[[bridges]]\nname = 'xenbr0'\nports = ['tap:host0']\n");
    let [alice, _bob] = two_guests(&machine);
    assert!(reaches(&alice));
    let ports = json(&machine, "show xenbr0");
    let bob =
        ports["ports"].as_array().unwrap().iter().find(|row| row["address"] == "00:16:3e:00:00:02").unwrap();
    let (name, domid) = (bob["port"].as_str().unwrap().to_owned(), bob["domid"].as_u64().unwrap());
    assert_eq!(name, format!("vif{domid}.0"));
    let fdb = json(&machine, &format!("fdb show dev {name}"));
    assert_eq!(row(&fdb, "mac", "00:16:3e:00:00:02")["state"], "permanent");

    // A vif's setting is its device's; that of a port of the host is the port's.
    change(&machine, &format!("link set dev {name} vlan 10"));
    eventually("bob is in a VLAN of his own", || !reaches(&alice));
    let listed: Value = serde_json::from_str(&machine.ok(["network-list", "bob", "--json"])).unwrap();
    assert_eq!(listed[0]["vlan"], "10");
    change(&machine, &format!("link set dev {name} isolated off hairpin on"));
    machine.ok(["network-set", "bob", "0", "vlan="]);
    eventually("he is in none", || reaches(&alice));
    change(&machine, "link set dev host0 isolated on learning off");
    let host = json(&machine, "link show dev host0");
    assert_eq!((&host[0]["isolated"], &host[0]["learning"]), (&json!(true), &json!(false)));

    change(&machine, "fdb add 02:00:00:00:00:09 dev host0 static");
    assert!(
        refused(&machine, "fdb add 02:00:00:00:00:09 dev host0")
            .contains("there is an entry of this address")
    );
    change(&machine, "fdb replace 02:00:00:00:00:09 dev host0 sticky");
    let fdb = json(&machine, "fdb");
    assert_eq!(row(&fdb, "mac", "02:00:00:00:00:09")["flags"], json!(["sticky"]));
    change(&machine, "fdb del 02:00:00:00:00:09 dev host0");
    // The host may have been seen there before.
    let left = json(&machine, "fdb show dev host0");
    assert!(left.as_array().unwrap().iter().all(|row| row["mac"] != "02:00:00:00:00:09"), "{left}");
    change(&machine, "set xenbr0 ageing_time=20 group_fwd_mask=0x4000");
    let list = json(&machine, "list");
    assert_eq!(list[0]["settings"]["ageing_time"], 20);
    assert_eq!(list[0]["settings"]["group_fwd_mask"], 0x4000);
}

#[test]
fn mirror_has_copies_of_what_a_guest_sends() {
    let machine = Machine::with("[[bridges]]\nname = 'xenbr0'\nports = ['tap:mirror0']\n");
    let [alice, _bob] = two_guests(&machine);
    let ports = json(&machine, "show xenbr0");
    let name = row(&ports["ports"], "address", "00:16:3e:00:00:01")["port"].as_str().unwrap().to_owned();
    let sent = || {
        let ports = json(&machine, "show xenbr0");
        row(&ports["ports"], "port", "tap:mirror0")["counters"]["tx_frames"].as_u64().unwrap()
    };
    change(&machine, &format!("mirror add watch br xenbr0 src {name} dst {name} output mirror0"));
    let before = sent();
    assert!(reaches(&alice));
    eventually("requests and answers are copied", || sent() >= before + 2);
    let mirrors = json(&machine, "mirror");
    assert_eq!(mirrors[0]["select_src"], json!([name]));
    assert!(mirrors[0]["frames"].as_u64().unwrap() >= 2, "{mirrors}");
    let refused = refused(&machine, &format!("mirror add watch br xenbr0 src {name} output mirror0"));
    assert!(refused.contains("there is one of this name already"), "{refused}");
    change(&machine, "mirror del watch br xenbr0");
    assert_eq!(json(&machine, "mirror show br xenbr0"), json!([]));
}

#[test]
fn vlans_and_ports_come_and_go() {
    let machine = with_taps("come0", "come1");
    let vlan = |name: &str| {
        let ports = json(&machine, "show xenbr0");
        row(&ports["ports"], "port", &format!("tap:{name}"))["vlan"].as_str().unwrap().to_owned()
    };
    for (words, name, expected) in [
        ("add dev come1 vid 30", "come1", "10p/20-30"),
        ("add vid 40-41 dev come1 untagged", "come1", "10p/20-30/40-41u"),
        ("add dev come1 vid 20 pvid untagged", "come1", "20p/10u/21-30/40-41u"),
        ("del dev come1 vid 20-30", "come1", "10u/40-41u"),
        ("add dev come0 vid 10", "come0", "10t"),
        ("del dev come0 vid 10", "come0", "none"),
    ] {
        change(&machine, &format!("vlan {words}"));
        assert_eq!(vlan(name), expected, "{words}");
    }
    change(&machine, "port add tap:come2,vlan=7,isolated=on br xenbr0");
    assert_eq!(vlan("come2"), "7");
    let link = run(program("ip", "iproute2").args(["link", "show", "come2"]));
    assert!(link.contains("UP"), "{link}");
    change(&machine, "fdb add 02:00:00:00:00:09 dev come2 static sticky");
    assert_eq!(json(&machine, "fdb get 02:00:00:00:00:09 br xenbr0")[0]["ifname"], "come2");
    change(&machine, "port del come2");
    let ports = json(&machine, "show xenbr0");
    assert!(ports["ports"].as_array().unwrap().iter().all(|port| port["port"] != "tap:come2"), "{ports}");
    assert!(!std::path::Path::new("/sys/class/net/come2").exists(), "dom0's own tap goes with it");
    assert!(refused(&machine, "fdb get 02:00:00:00:00:09").contains("expected the address of an entry"));
    let flushed = json(&machine, "fdb flush dev xenbr0");
    assert!(flushed["removed"].is_u64(), "{flushed}");
}

#[test]
fn what_is_not_understood_changes_nothing_and_is_named() {
    let machine = with_taps("refused0", "refused1");
    for (words, expected) in [
        ("link set dev host7 isolated on", "dev: found \"host7\", expected a port of a bridge of dom0"),
        ("link set dev refused0 isolated maybe", "isolated: found \"maybe\", expected on or off"),
        ("link set dev refused0 state 3", "found \"state\", expected [show] [dev PORT]"),
        ("link set isolated on", "expected [show] [dev PORT]"),
        ("fdb add 00:16:3e dev refused0", "mac: found \"00:16:3e\", expected an address"),
        ("fdb add 01:00:5e:00:00:01 dev refused0", "the address is no single station's"),
        ("fdb add 02:00:00:00:00:01 dev refused1 vlan 30", "the port is not in this VLAN"),
        ("fdb del 02:00:00:00:00:01 dev refused0", "there is no such entry at this port"),
        (
            "fdb add 02:00:00:00:00:01 dev refused0 vlan 4096",
            "vlan: found 4096, expected a VLAN from 1 to 4094",
        ),
        ("fdb show br xenbr7", "bridge: found \"xenbr7\", expected one of"),
        ("mirror show br xenbr7", "bridge: found \"xenbr7\", expected one of"),
        ("mirror del m", "br: missing"),
        ("link set dev refused0", "a setting: missing"),
        ("fdb flush", "dev: missing"),
        ("vlan add vid 10", "dev: missing"),
        ("vlan add dev refused0", "vid: missing"),
        ("vlan add vid 10-20 dev refused0 pvid", "vid: found 10-20, expected one VLAN with pvid"),
        ("vlan add vid 4095 dev refused0", "vid: found \"4095\", expected a VLAN from 1 to 4094"),
        (
            "vlan del vid 30 dev refused1",
            "vid: found 30, expected a VLAN that refused1 was given: its own are 10p/20-29",
        ),
        ("vlan show dev refused0 dev", "found \"dev\", expected [show]"),
        ("link set dev refused0 learning on learning off", "found \"learning\" a second time"),
        ("fdb add 02:00:00:00:00:01 dev refused0 vlan 1 vlan 2", "found \"vlan\" a second time"),
        ("fdb add 02:00:00:00:00:01 dev refused0 static dynamic", "found \"dynamic\" behind \"static\""),
        ("fdb get 02:00:00:00:00:01", "MAC: found \"02:00:00:00:00:01\", expected the address of an entry"),
        ("mirror add m br xenbr0 all all output refused0", "found \"all\" a second time"),
        ("port add eth9 br xenbr0", "PORT: found \"eth9\", expected tap:NAME or packet:NAME"),
        ("port add packet:none9 br xenbr0", "packet:none9"),
        ("port add tap:refused0 br xenbr0", "refused0"),
        ("port add tap:refused2", "br: missing"),
        ("port add tap:refused2 br xenbr7", "bridge: found \"xenbr7\""),
        ("port del refused7", "dev: found \"refused7\""),
        ("mirror add m br xenbr0 output refused0", "it selects no port"),
        ("mirror add m br xenbr0 all", "output: missing"),
        ("mirror add m br xenbr0 src refused0 output refused0", "it selects a port that is an output"),
        ("mirror del m br xenbr0", "there is none of this name"),
        ("set xenbr0 group_fwd_mask=7", "group_fwd_mask: found 0x7"),
        ("set xenbr0 ageing_time=20 fdb_max_learned=0", "fdb_max_learned: found 0"),
        ("set xenbr7 ageing_time=20", "bridge: found \"xenbr7\", expected one of this dom0's: xenbr0"),
        ("show xenbr7", "found \"xenbr7\", expected the name of a bridge of dom0"),
    ] {
        let error = refused(&machine, words);
        assert!(error.contains(expected), "{words}: {error}");
    }
    let list = json(&machine, "list");
    assert_eq!(list[0]["settings"]["ageing_time"], 300, "not half of a change");
    assert_eq!(json(&machine, "link show dev refused0")[0]["isolated"], false);
}
