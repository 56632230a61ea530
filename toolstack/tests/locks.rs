//! A guest's vif sends from its own address alone, until that is changed by command.

mod common;

use common::netns::{Namespace, two_guests};
use common::program::run;
use common::{Machine, eventually};
use serde_json::Value;

const OTHER: &str = "00:16:3e:00:00:99";

fn set_address(namespace: &Namespace, mac: &str) {
    run(namespace.program("ip", "iproute2").args(["link", "set", "eth0", "address", mac]));
}

/// Whether bob answers.
fn reaches(alice: &Namespace) -> bool {
    let mut ping = alice.program("ping", "iputils-ping");
    ping.args(["-c", "1", "-W", "1", "10.77.0.2"]).output().unwrap().status.success()
}

fn vif(machine: &Machine, guest: &str) -> Value {
    let list: Value = serde_json::from_str(&machine.ok(["network-list", guest, "--json"])).unwrap();
    list[0].clone()
}

fn dropped(machine: &Machine) -> u64 {
    dropped_by(machine, "lock")
}

fn dropped_by(machine: &Machine, reason: &str) -> u64 {
    vif(machine, "alice")["stats"]["drops"][reason].as_u64().unwrap()
}

#[test]
fn guest_sends_from_another_address_only_where_its_lock_is_off() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    assert!(reaches(&alice));
    let before = dropped(&machine);
    set_address(&alice, OTHER);
    assert!(!reaches(&alice));
    assert!(dropped(&machine) > before);
    assert_eq!(vif(&machine, "alice")["lock"], Value::Null);
    let changed =
        |count| eventually("the lock is changed", || machine.log().matches("lock changed").count() == count);
    machine.ok(["network-set", "alice", "0", "lock=off"]);
    changed(1);
    assert_eq!(vif(&machine, "alice")["lock"], "off");
    eventually("bob answers to the other address", || reaches(&alice));
    // The default again.
    machine.ok(["network-set", "alice", "0", "lock="]);
    changed(2);
    let before = dropped(&machine);
    assert!(!reaches(&alice));
    assert!(dropped(&machine) > before);
    let own = vif(&machine, "alice")["mac"].as_str().unwrap().to_owned();
    set_address(&alice, &own);
    eventually("bob answers again", || reaches(&alice));
    machine.ok(["network-set", "alice", &own, "lock=disabled"]);
    changed(3);
    assert!(!reaches(&alice));
}

#[test]
fn lock_that_is_none_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    let errors = machine.fails(["network-set", "alice", "0", "lock=none"]);
    assert!(errors.contains("found \"none\", expected off, mac, ip or disabled"), "{errors}");
    let errors = machine.fails(["network-set", "alice", "7", "lock=off"]);
    assert!(errors.contains("alice has no vif 7"), "{errors}");
    assert!(reaches(&alice));
}

/// In force from the first frame on, and read from the vif's line.
#[test]
fn line_of_a_vif_says_its_lock() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    machine.ok(["network-attach", "alice", "mac=00:16:3e:00:00:77,lock=off"]);
    eventually("the lock is in the log", || machine.log().contains("lock=off"));
    assert!(machine.log().contains("lock=mac"), "the others' default");
    assert!(reaches(&alice));
}

/// alice has 10.77.0.1.
#[test]
fn guest_with_given_addresses_sends_from_these_alone() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    let ip = |args: &[&str]| run(alice.program("ip", "iproute2").args(args));
    let changed =
        |count| eventually("the lock is changed", || machine.log().matches("lock changed").count() == count);
    machine.ok(["network-set", "alice", "0", "ip=10.77.0.1 2001:db8::1"]);
    changed(1);
    assert_eq!(vif(&machine, "alice")["ip"], "10.77.0.1 2001:db8::1");
    assert!(reaches(&alice));
    // From another address, of which nobody knows yet whose it is.
    ip(&["address", "add", "10.77.0.9/24", "dev", "eth0"]);
    let ping = |from: &str, to: &str| {
        let mut ping = alice.program("ping", "iputils-ping");
        ping.args(["-c", "1", "-W", "1", "-I", from, to]).output().unwrap().status.success()
    };
    assert!(!ping("10.77.0.9", "10.77.0.2"));
    assert!(ping("10.77.0.1", "10.77.0.2"));
    assert!(dropped_by(&machine, "lock_ip") + dropped_by(&machine, "lock_arp") > 0);
    // The test of another's address does not get out, that of an own one does, and nobody has it.
    let before = dropped_by(&machine, "lock_ndp");
    ip(&["address", "add", "2001:db8::2/64", "dev", "eth0"]);
    eventually("the test is dropped", || dropped_by(&machine, "lock_ndp") > before);
    ip(&["address", "add", "2001:db8::1/64", "dev", "eth0"]);
    eventually("the own address is used", || {
        !ip(&["-6", "address", "show", "dev", "eth0", "tentative"]).contains("2001:db8::1/")
    });
    machine.ok(["network-set", "alice", "0", "lock=mac"]);
    changed(2);
    eventually("bob answers to the other address", || ping("10.77.0.9", "10.77.0.2"));
    let errors = machine.fails(["network-set", "alice", "0", "ip=10.77.0.1/33", "lock=ip"]);
    assert!(errors.contains("found \"10.77.0.1/33\", expected a prefix length"), "{errors}");
}
