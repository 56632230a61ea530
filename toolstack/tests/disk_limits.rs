//! Limits of disks by their lines, by `xpv block-set` and by a policy, on a machine of processes.

mod common;

use std::time::{Duration, Instant};

use common::netns::two_guests;
use common::{Machine, eventually};
use serde_json::{Value, json};
use testkit::nbd::{BLOCK, Nbd};
use xenstore::Nodes;

const MIB: u64 = 1 << 20;

/// A machine with this policy, in a directory that is to be kept.
fn machine(policy: &str) -> (Machine, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy.toml");
    std::fs::write(&path, policy).unwrap();
    (Machine::with(&format!("policy = '{}'", path.display())), directory)
}

/// The limits that are in force for a guest's only disk.
fn limits(machine: &Machine) -> Value {
    let list: Value = serde_json::from_str(&machine.ok(["block-list", "web", "--json"])).unwrap();
    list[0]["limits"].clone()
}

/// Writes so many blocks, one after the other; returns how long that took.
fn write(machine: &Machine, blocks: u64) -> Duration {
    let mut client = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    let start = Instant::now();
    for block in 0..blocks {
        client.send_write(block, &[7; BLOCK]).unwrap();
        client.written().unwrap();
    }
    start.elapsed()
}

#[test]
fn disk_has_the_limits_of_its_line_of_the_policy_and_of_block_set() {
    let policy = "
[[disk]]
domain = 'w*'
iops-total = 50
bps-read = '100M'

[[disk]]
domain = 'other'
iops-total = 1
";
    let (machine, _directory) = machine(policy);
    let image = machine.image("a.img", MIB);
    let line = format!("vdev=xvda,iops-write=40,iops-total-max=60,iops-total=30,target={}", image.display());
    machine.create("web", &format!("disk=['{line}']"));
    let in_force = json!({"iops-total": 30, "iops-total-max": 60, "iops-write": 40, "bps-read": 100 * MIB});
    assert_eq!(limits(&machine), in_force);
    // Live, and back to what the policy says: 50 a second, of which 3 and one more may start at once.
    machine.ok(["block-set", "web", "xvda", "iops-write=0", "iops-total-max=", "iops-total="]);
    eventually("the limits are changed", || {
        limits(&machine) == json!({"iops-total": 50, "bps-read": 100 * MIB})
    });
    let time = write(&machine, 60);
    assert!(time >= Duration::from_millis(1100), "{time:?}");
    machine.ok(["block-set", "web", "51712", "iops-total=0", "throttle-group=gold"]);
    let free = json!({"bps-read": 100 * MIB, "throttle-group": "gold"});
    eventually("there is no limit of writes", || limits(&machine) == free);
    let time = write(&machine, 200);
    assert!(time < Duration::from_secs(3), "{time:?}");

    // Its successor knows what was set.
    machine.kill_dom0();
    eventually("the next dom0 has the limits", || limits(&machine) == free);
    // Until the disk is detached.
    machine.ok(["block-detach", "web", "xvda"]);
    machine.ok(["block-attach", "web", &format!("{},raw,xvda", image.display())]);
    assert_eq!(limits(&machine), json!({"iops-total": 50, "bps-read": 100 * MIB}));
}

#[test]
fn devices_whose_limits_cannot_be_read_when_dom0_starts_wait_and_are_not_unlimited() {
    let (machine, _directory) = machine("");
    let image = machine.image("a.img", MIB);
    machine.create(
        "web",
        &format!("disk=['vdev=xvda,iops-total=100,target={}']\nvif=['rate=8Mb/s']", image.display()),
    );
    let list: Value = serde_json::from_str(&machine.ok(["list", "--json", "web"])).unwrap();
    let back = |kind: &str| format!("/local/domain/0/backend/{kind}/{}", list[0]["domid"]);
    let keys = [format!("{}/51712/iops-total", back("vbd")), format!("{}/0/rate", back("vif"))];
    let before = keys.clone().map(|key| machine.store().read_text(&key).unwrap());
    keys.iter().for_each(|key| machine.store().write(key, "fast").unwrap());
    machine.await_dom0_after(machine.kill_dom0());
    for (command, key) in ["block-list", "network-list"].into_iter().zip(&keys) {
        let what = format!("{key}: found \\\"fast\\\"");
        eventually("dom0 names the key", || machine.ok([command, "--json", "web"]).contains(&what));
    }
    for (key, value) in keys.iter().zip(before) {
        machine.store().write(key, value).unwrap();
    }
    eventually("the disk has its limit", || limits(&machine) == json!({"iops-total": 100}));
    eventually("the interface has its rate", || {
        machine.ok(["network-list", "--json", "web"]).contains("50000")
    });
}

#[test]
fn bad_limits_are_refused_and_change_nothing() {
    let (machine, _directory) = machine("");
    let image = machine.image("a.img", MIB);
    machine.create("web", &format!("disk=['vdev=xvda,iops-total=100,target={}']", image.display()));
    for (args, expected) in [
        (&["xvda", "iops-total=fast"][..], r#"KEY=VALUE: disk: iops-total: found "fast", expected a number"#),
        (&["xvda", "iops-totl=5"], r#"KEY=VALUE: disk: found "iops-totl=5", expected a limit such as"#),
        (
            &["xvda", "iops-read=5", "bps-read=-1"],
            r#"disk: bps-read: found "-1", expected a number of bytes"#,
        ),
        (
            &["xvda", "iops-total-max=100"],
            "disk: iops-total-max: found \"100\", expected more than iops-total",
        ),
        (&["xvda", "bps-read-max=100"], "disk: bps-read-max: found \"100\", expected bps-read beside it"),
        (&["xvdb", "iops-total=5"], "web has no disk xvdb"),
        (&["x/y", "iops-total=5"], "VDEV: disk: vdev: found \"x/y\""),
    ] {
        let error = machine.fails(["block-set", "web"].iter().chain(args));
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    assert_eq!(limits(&machine), json!({"iops-total": 100}));
    machine.ok(["block-set", "web", "xvda", "iops-total-max=200"]);
    let in_force = json!({"iops-total": 100, "iops-total-max": 200});
    eventually("the limit is set", || limits(&machine) == in_force);
    // As somebody may who writes to the store by hand.
    let path = "/local/domain/0/backend/vbd/1/51712/iops-total";
    xenstore::Nodes::write(&mut machine.store(), path, "-5").unwrap();
    eventually("the bad value is logged", || {
        machine.log().contains(&format!("{path}: found \"-5\", expected"))
    });
    assert_eq!(limits(&machine), in_force);
}

#[test]
fn interfaces_have_what_the_policy_says() {
    let (machine, _directory) = machine("[[vif]]\ndomain = 'alice'\nrate = '8Mb/s'\nlock = 'off'\n");
    let _guests = two_guests(&machine);
    let log = machine.log();
    assert_eq!(log.matches("rate=50000 bytes in 50ms").count(), 1, "{log}");
    assert_eq!(log.matches("lock=off").count(), 1, "{log}");
}

#[test]
fn dom0_does_not_start_with_a_bad_policy() {
    let (machine, directory) = machine("");
    let path = directory.path().join("bad.toml");
    std::fs::write(&path, "[[disk]]\n\niops-totl = 5\n").unwrap();
    let error = machine.fails(["dom0".as_ref(), "--policy".as_ref(), path.as_os_str()]);
    let expected = format!("{}:3: disk: found \"iops-totl\", expected domain, uuid, vdev", path.display());
    assert!(error.contains(&expected), "{error}");
    let error = machine.fails(["dom0", "--policy", "/no/such/policy.toml"]);
    assert!(error.contains("/no/such/policy.toml: reading the policy: No such file"), "{error}");
}
