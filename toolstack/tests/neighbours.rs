//! A machine beside others on one host: interfaces that are another machine's, or nobody's, are left alone.

mod common;

use std::path::Path;

use bridge::port::netdev;
use common::Machine;
use common::program::{program, run};
use hypervisor::InflightDir;
use toolstack::backend::{bridges::Bridges, stale};
use xenstore::server::{Config, Store};
use xenstore::xenbus::Device;
use xenstore::{DomId, Keys, Nodes};

fn ip(line: &str) -> String {
    run(program("ip", "iproute2").args(line.split(' ')))
}

fn is_there(interface: &str) -> bool {
    netdev::link(interface).is_ok()
}

fn alias(interface: &str) -> Option<String> {
    netdev::link(interface).unwrap().alias
}

#[test]
fn the_test_program_runs_in_a_network_namespace_of_its_own() {
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    // A parent outside of our user namespace may not be looked at.
    let parents = std::fs::read_link(format!("/proc/{}/ns/net", std::os::unix::process::parent_id()));
    assert!(parents.is_err() || parents.unwrap() != ours);
    netdev::link("lo").unwrap();
}

/// A tap is as `ip tuntap add` made it: whoever attaches to one as xpv does changes its flags.
fn is_untouched(tap: &str) {
    let details = ip(&format!("-d link show dev {tap}"));
    assert!(details.contains("vnet_hdr off") && details.contains("persist on"), "{details}");
}

/// The tap of a guest's first vif, as `network-list` has it in both of its forms.
fn tap(machine: &Machine, guest: &str) -> String {
    let list: serde_json::Value =
        serde_json::from_str(&machine.ok(["network-list", guest, "--json"])).unwrap();
    let tap = list[0]["tap"].as_str().unwrap().to_owned();
    let table = machine.ok(["network-list", guest]);
    assert!(table.lines().nth(1).unwrap().split_whitespace().any(|word| word == tap), "{table}");
    tap
}

#[test]
fn two_machines_on_one_host_have_taps_of_different_names() {
    let first = Machine::new();
    let second = Machine::new();
    // Whichever other test has domains of these numbers: the names are this one's by its vifs' numbers.
    first.create("web", "vif=['devid=5']");
    second.create("web", "vif=['devid=5']");
    assert_eq!(tap(&first, "web"), "vif1.5");
    assert_eq!(alias("vif1.5"), Some(format!("xpv {} 1/5", first.dir().display())));
    let other = tap(&second, "web");
    assert!(other.starts_with("vif1.5-") && other.len() == 11, "{other}");
    assert_eq!(alias(&other), Some(format!("xpv {} 1/5", second.dir().display())));
    let log = std::fs::read_to_string(second.dir().join("web/log")).unwrap();
    let holder = format!("vif 5 of domain 1 of the xpv machine in {}", first.dir().display());
    assert!(log.contains(&holder) && log.contains(&other), "{log}");
    second.ok(["destroy", "web"]);
    common::eventually("the tap is gone", || !is_there(&other));
    assert!(is_there("vif1.5"));
}

#[test]
fn a_chosen_name_that_another_machine_has_is_refused() {
    let first = Machine::new();
    let second = Machine::new();
    first.create("web", "vif=['vifname=web0']");
    let cfg = second.file("web.cfg", "name='web'\nvif=['vifname=web0']");
    let said = second.fails([Path::new("create"), &cfg]);
    let holder = format!("is the tap of vif 0 of domain 1 of the xpv machine in {}", first.dir().display());
    assert!(said.contains("\"web0\"") && said.contains(&holder) && said.contains("vifname="), "{said}");
    assert_eq!(alias("web0"), Some(format!("xpv {} 1/0", first.dir().display())));
}

#[test]
fn a_guest_does_not_take_a_persistent_tap_of_the_administrator() {
    ip("tuntap add vif1.7 mode tap");
    ip("tuntap add lab0 mode tap");
    let machine = Machine::new();
    machine.create("web", "vif=['devid=7']");
    assert!(tap(&machine, "web").starts_with("vif1.7-"));
    let cfg = machine.file("lab.cfg", "name='lab'\nvif=['vifname=lab0']");
    let said = machine.fails([Path::new("create"), &cfg]);
    assert!(said.contains("\"lab0\" exists already and is a tap that xpv did not make"), "{said}");
    assert!(said.contains("`ip link delete lab0`"), "{said}");
    for interface in ["vif1.7", "lab0"] {
        is_untouched(interface);
    }
}

/// The keys of a vif that no stock script sets up, in a state of its backend's.
fn keys(linux_bridge: &str, state: &str) -> Keys {
    Keys::new("/b").with("script", "/bin/true").with("bridge", linux_bridge).with("state", state)
}

#[test]
fn a_dom0_that_was_killed_has_its_tap_taken_over() {
    ip("link add br8 type bridge");
    let bridges = Bridges::start(&[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let device = Device::new("vif", DomId(8), 0);
    let join = |dir: &Path, state| bridges.attach_or_create_tap(dir, &device, &keys("br8", state));
    // What is dropped without `clear` is as a killed process leaves it.
    drop(join(dir.path(), "1").unwrap());
    assert_eq!(alias("vif8.0"), Some(format!("xpv {} 8/0", dir.path().display())));
    assert_eq!(netdev::master("vif8.0").as_deref(), Some("br8"));
    let elsewhere = tempfile::tempdir().unwrap();
    let failure = join(elsewhere.path(), "4").err().unwrap();
    assert_eq!(failure.errno, nix::errno::Errno::EBUSY as i32);
    assert!(failure.what.contains(&dir.path().display().to_string()), "{}", failure.what);
    let place = join(dir.path(), "4").unwrap();
    place.cleanup.unwrap()();
    drop(place.bridge);
    common::eventually("the tap is gone", || !is_there("vif8.0"));
}

#[test]
fn dom0_refuses_a_tap_that_xpv_did_not_make() {
    ip("link add br9 type bridge");
    ip("tuntap add vif9.0 mode tap");
    let bridges = Bridges::start(&[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let join = |state| {
        bridges.attach_or_create_tap(dir.path(), &Device::new("vif", DomId(9), 0), &keys("br9", state))
    };
    let failure = join("1").err().unwrap();
    assert!(
        failure.what.contains("\"vif9.0\" exists already and is a tap that xpv did not make"),
        "{}",
        failure.what
    );
    assert!(failure.what.contains("`ip link delete vif9.0`"), "{}", failure.what);
    is_untouched("vif9.0");
    // One that served the vif already was a version of xpv that did not mark its taps.
    let place = join("4").unwrap();
    assert_eq!(alias("vif9.0"), Some(format!("xpv {} 9/0", dir.path().display())));
    drop(place);
}

#[test]
fn leftover_taps_are_removed_where_they_are_the_machines_own() {
    for (name, alias) in [("vif11.0", ""), ("vif11.1", "xpv /run/other 11/1"), ("vif11.2", "somebody's")] {
        ip(&format!("tuntap add {name} mode tap"));
        netdev::set_alias(name, alias).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let own = |domid: u32| format!("xpv {} {domid}/0", dir.path().display());
    for (name, domid) in [("vif12.0", 12), ("renamed12", 12), ("vif13.0", 13)] {
        ip(&format!("tuntap add {name} mode tap"));
        netdev::set_alias(name, &own(domid)).unwrap();
    }
    // By a version that did not mark its taps.
    ip("tuntap add vif14.0 mode tap");
    let keep = InflightDir::new(dir.path().join("inflight")).unwrap();
    keep.create("vif-14-0-tx", "", 1).unwrap();
    let store = Store::spawn(Config::default()).unwrap();
    let mut client = store.client().unwrap();
    client.write("/local/domain/0/backend/vif/13/0/state", "4").unwrap();
    stale::remove(&mut client, DomId::DOM0, dir.path(), &keep).unwrap();
    for kept in ["vif11.0", "vif11.1", "vif11.2", "vif13.0"] {
        assert!(is_there(kept), "{kept}");
    }
    for removed in ["vif12.0", "renamed12", "vif14.0"] {
        assert!(!is_there(removed), "{removed}");
    }
    assert!(keep.names().unwrap().is_empty());
}
