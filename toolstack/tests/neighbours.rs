//! Several machines on one host: interfaces of another machine or of the administrator are not changed.

mod common;

use std::path::Path;

use bridge::port::netdev;
use common::Machine;
use common::program::{program, run};
use inflight::InflightDir;
use ring_abi::netif::key;
use toolstack::backend::{bridges::Bridges, stale};
use xenbus::{Device, Keys};
use xenstore::server::{Config, Store};
use xenstore::{DomId, Nodes};

fn ip(line: &str) -> String {
    run(program("ip", "iproute2").args(line.split(' ')))
}

fn exists(interface: &str) -> bool {
    netdev::link(interface).is_ok()
}

fn alias(interface: &str) -> Option<String> {
    netdev::link(interface).unwrap().alias
}

#[test]
fn test_program_runs_in_its_own_network_namespace() {
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    // The namespace of a parent outside this user namespace may not be read.
    let parent = std::fs::read_link(format!("/proc/{}/ns/net", std::os::unix::process::parent_id()));
    assert!(parent.is_err() || parent.unwrap() != own);
    netdev::link("lo").unwrap();
}

/// Asserts that a tap is as `ip tuntap add` made it: attaching to it as xpv does would change its flags.
fn assert_untouched(tap: &str) {
    let details = ip(&format!("-d link show dev {tap}"));
    assert!(details.contains("vnet_hdr off") && details.contains("persist on"), "{details}");
}

/// The tap of a guest's first vif in the output of `network-list`, which must be the same in both formats.
fn tap(machine: &Machine, guest: &str) -> String {
    let list: serde_json::Value =
        serde_json::from_str(&machine.ok(["network-list", guest, "--json"])).unwrap();
    let tap = list[0]["tap"].as_str().unwrap().to_owned();
    let table = machine.ok(["network-list", guest]);
    assert!(table.lines().nth(1).unwrap().split_whitespace().any(|word| word == tap), "{table}");
    tap
}

#[test]
fn taps_of_two_machines_have_different_names() {
    let first = Machine::new();
    let second = Machine::new();
    // Other tests have domains of the same numbers; no other has vifs of this number.
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
    common::eventually("the tap is removed", || !exists(&other));
    assert!(exists("vif1.5"));
}

#[test]
fn vifname_of_another_machines_tap_is_refused() {
    let first = Machine::new();
    let second = Machine::new();
    first.create("web", "vif=['vifname=web0']");
    let cfg = second.file("web.cfg", "name='web'\nvif=['vifname=web0']");
    let error = second.fails([Path::new("create"), &cfg]);
    let holder = format!("is the tap of vif 0 of domain 1 of the xpv machine in {}", first.dir().display());
    assert!(error.contains("\"web0\"") && error.contains(&holder) && error.contains("vifname="), "{error}");
    assert_eq!(alias("web0"), Some(format!("xpv {} 1/0", first.dir().display())));
}

#[test]
fn persistent_tap_of_the_administrator_is_not_used() {
    ip("tuntap add vif1.7 mode tap");
    ip("tuntap add lab0 mode tap");
    let machine = Machine::new();
    machine.create("web", "vif=['devid=7']");
    assert!(tap(&machine, "web").starts_with("vif1.7-"));
    let cfg = machine.file("lab.cfg", "name='lab'\nvif=['vifname=lab0']");
    let error = machine.fails([Path::new("create"), &cfg]);
    assert!(error.contains("\"lab0\" exists already and is a tap that xpv did not make"), "{error}");
    assert!(error.contains("`ip link delete lab0`"), "{error}");
    for interface in ["vif1.7", "lab0"] {
        assert_untouched(interface);
    }
}

/// The backend's keys of a vif whose hotplug script does nothing, with this state.
fn keys(linux_bridge: &str, state: &str) -> Keys {
    Keys::new("/b").with(key::SCRIPT, "/bin/true").with(key::BRIDGE, linux_bridge).with(key::STATE, state)
}

#[test]
fn tap_of_a_killed_dom0_is_used_again() {
    ip("link add br8 type bridge");
    let bridges = Bridges::start(&[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let device = Device::new("vif", DomId(8), 0);
    let join = |dir: &Path, state| bridges.attach_or_create_tap(dir, &device, &keys("br8", state));
    // Dropped without `cleanup`, the tap remains as after a kill.
    drop(join(dir.path(), "1").unwrap());
    assert_eq!(alias("vif8.0"), Some(format!("xpv {} 8/0", dir.path().display())));
    assert_eq!(netdev::master("vif8.0").as_deref(), Some("br8"));
    let elsewhere = tempfile::tempdir().unwrap();
    let failure = join(elsewhere.path(), "4").err().unwrap();
    assert_eq!(failure.errno, nix::errno::Errno::EBUSY as i32);
    assert!(failure.what.contains(&dir.path().display().to_string()), "{}", failure.what);
    let attachment = join(dir.path(), "4").unwrap();
    attachment.cleanup.unwrap()();
    drop(attachment.bridge);
    common::eventually("the tap is removed", || !exists("vif8.0"));
}

#[test]
fn tap_that_xpv_did_not_make_is_refused() {
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
    assert_untouched("vif9.0");
    // In state Connected: the vif was served by a version of xpv that did not mark its taps.
    let attachment = join("4").unwrap();
    assert_eq!(alias("vif9.0"), Some(format!("xpv {} 9/0", dir.path().display())));
    drop(attachment);
}

#[test]
fn stale_taps_of_this_machine_are_removed_and_others_kept() {
    for (name, alias) in [("vif11.0", ""), ("vif11.1", "xpv /run/other 11/1"), ("vif11.2", "another alias")] {
        ip(&format!("tuntap add {name} mode tap"));
        netdev::set_alias(name, alias).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let own = |domid: u32| format!("xpv {} {domid}/0", dir.path().display());
    for (name, domid) in [("vif12.0", 12), ("renamed12", 12), ("vif13.0", 13)] {
        ip(&format!("tuntap add {name} mode tap"));
        netdev::set_alias(name, &own(domid)).unwrap();
    }
    // A tap of a version that did not mark its taps.
    ip("tuntap add vif14.0 mode tap");
    let inflight_dir = InflightDir::new(dir.path().join("inflight")).unwrap();
    inflight_dir.create("vif-14-0-tx", "", 1).unwrap();
    let store = Store::spawn(Config::default()).unwrap();
    let mut client = store.client().unwrap();
    client.write("/local/domain/0/backend/vif/13/0/state", "4").unwrap();
    stale::remove(&mut client, DomId::DOM0, dir.path(), &inflight_dir).unwrap();
    for kept in ["vif11.0", "vif11.1", "vif11.2", "vif13.0"] {
        assert!(exists(kept), "{kept}");
    }
    for removed in ["vif12.0", "renamed12", "vif14.0"] {
        assert!(!exists(removed), "{removed}");
    }
    assert!(inflight_dir.names().unwrap().is_empty());
}
