//! What `xpv bridge` has changed is there again after SIGKILL to dom0, until it is changed again or dom0's line says another thing.

mod common;

use std::io::BufRead;
use std::path::Path;
use std::process::Stdio;

use common::netns::two_guests;
use common::{Guard, Machine, command, eventually, texts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn ask(dir: &Path, words: &str) -> Value {
    let output =
        command(dir).args(["bridge", "--json"]).args(words.split_ascii_whitespace()).output().unwrap();
    assert!(output.status.success(), "{words}: {}", texts(&output).1);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn change(dir: &Path, words: &str) {
    let output = command(dir).arg("bridge").args(words.split_ascii_whitespace()).output().unwrap();
    assert!(output.status.success(), "{words}: {}", texts(&output).1);
}

/// All that can be told of the bridge `xenbr0`, without what is counted and learned.
fn told(dir: &Path) -> Value {
    let shown = ask(dir, "show xenbr0");
    let ports = shown["ports"].as_array().unwrap().iter().map(|port| {
        json!([port["port"], port["address"], port["vlan"], port["flags"], port["rate"], port["storm"]])
    });
    let fdb = ask(dir, "fdb");
    let fdb = fdb.as_array().unwrap().iter().filter(|row| row["state"] != "permanent");
    let given = fdb.filter(|row| row["state"] == "static" || row["flags"] == json!(["sticky"]));
    let given: Vec<_> =
        given.map(|row| json!([row["mac"], row["ifname"], row["vlan"], row["state"]])).collect();
    let mirrors = ask(dir, "mirror");
    let mirrors = mirrors.as_array().unwrap().iter();
    let mirrors: Vec<_> = mirrors.map(|row| json!([row["name"], row["select_src"], row["output"]])).collect();
    let settings = ["ageing_time", "fdb_max_learned", "group_fwd_mask"];
    let settings = settings.map(|key| shown["bridge"]["settings"][key].clone());
    json!({"settings": settings, "ports": ports.collect::<Vec<_>>(), "fdb": given, "mirrors": mirrors})
}

fn kill_dom0(machine: &Machine) {
    let dom0 = machine.pid("Domain-0").unwrap();
    kill(Pid::from_raw(dom0), Signal::SIGKILL).unwrap();
    eventually("another dom0 answers", || {
        let listed = command(&machine.dir()).args(["bridge", "list"]).output().unwrap();
        listed.status.success() && machine.pid("Domain-0").is_some_and(|pid| pid != dom0)
    });
}

#[test]
fn bridge_is_after_a_kill_as_it_was_told_to_be() {
    let line = "ports = ['tap:kept0', 'tap:kept1,vlan=10p/20,isolated=on', 'tap:kept2']";
    let machine = Machine::with(&format!("[[bridges]]\nname = 'xenbr0'\n{line}\nageing_time = 90\n"));
    let [_alice, _bob] = two_guests(&machine);
    let dir = machine.dir();
    let at_first = told(&dir);
    let vif = |address: &str| {
        let shown = ask(&dir, "show xenbr0");
        let ports = shown["ports"].as_array().unwrap();
        let port = ports.iter().find(|port| port["address"] == address).unwrap();
        port["port"].as_str().unwrap().to_owned()
    };
    let (alice, bob) = (vif("00:16:3e:00:00:01"), vif("00:16:3e:00:00:02"));
    // Of a vif it is written to its device, which is followed.
    let is_in = |vlan: &str| {
        told(&dir)["ports"].as_array().unwrap().iter().any(|port| port[0] == *alice && port[2] == vlan)
    };
    change(&dir, &format!("link set dev {alice} vlan 20"));
    eventually("alice is in VLAN 20", || is_in("20"));
    for words in [
        "set xenbr0 ageing_time=120 group_fwd_mask=0x4000",
        "link set dev kept0 learning off rate 8Mb/s storm_broadcast 100",
        "vlan add dev kept1 vid 30-31",
        "port add tap:kept3,vlan=40p/41 br xenbr0",
        "port del kept2",
        "fdb add 02:00:00:00:00:01 dev kept0 static",
        "fdb add 02:00:00:00:00:02 dev kept1 vlan 30 sticky",
        "fdb add 02:00:00:00:00:03 dev kept3 static",
        &format!("fdb add 02:00:00:00:00:04 dev {alice} static"),
        &format!("fdb add 02:00:00:00:00:05 dev {bob} static"),
        &format!("mirror add watch br xenbr0 src {alice} output kept0"),
        &format!("mirror add ids br xenbr0 src kept1 output {bob}"),
    ] {
        change(&dir, words);
    }
    let before = told(&dir);
    assert_eq!(before["fdb"].as_array().unwrap().len(), 6, "one of kept3 is in each of its VLANs: {before}");
    assert_eq!(before["mirrors"].as_array().unwrap().len(), 2);
    for round in 0..2 {
        kill_dom0(&machine);
        eventually(&format!("all is as it was, round {round}"), || told(&dir) == before);
    }

    // What is taken back does not come again, nor what is at a vif that is gone: ids and one entry are bob's.
    machine.ok(["network-detach", "bob", "0"]);
    eventually("bob's entries and mirror are gone", || {
        let now = told(&dir);
        now["mirrors"].as_array().unwrap().len() == 1 && now["fdb"].as_array().unwrap().len() == 5
    });
    for words in [
        "set xenbr0 ageing_time=90 group_fwd_mask=0",
        "link set dev kept0 learning on",
        "vlan del dev kept1 vid 30-31",
        "port del kept3",
        "port add tap:kept2 br xenbr0",
        "fdb flush br xenbr0 static",
        "mirror del watch br xenbr0",
    ] {
        change(&dir, words);
    }
    machine.ok(["bridge", "link", "set", "dev", "kept0", "rate", "", "storm_broadcast", ""]);
    machine.ok(["bridge", "link", "set", "dev", &alice, "vlan", ""]);
    eventually("alice is in none", || is_in("untagged"));
    let mut without_bob = at_first;
    without_bob["ports"].as_array_mut().unwrap().retain(|port| port[1] != "00:16:3e:00:00:02");
    assert_eq!(told(&dir), without_bob);
    kill_dom0(&machine);
    eventually("all is as at first", || told(&dir) == without_bob);
}

/// A hypervisor and dom0 by hand.
fn start(dir: &Path, args: &[&str]) -> Guard {
    let mut process = Guard(command(dir).args(args).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    std::io::BufReader::new(process.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{args:?}");
    process
}

#[test]
fn what_a_later_line_says_otherwise_counts() {
    let directory = tempfile::Builder::new().prefix("xpv").tempdir().unwrap();
    let dir = directory.path().join("run");
    let _hypervisor = start(&dir, &["hypervisor"]);
    let dom0 = |line: &str| start(&dir, &["dom0", "--bridge", line]);
    let restart = |mut killed: Guard, line: &str| {
        killed.0.kill().unwrap();
        killed.0.wait().unwrap();
        dom0(line)
    };
    let port = |name: &str| {
        let shown = ask(&dir, "show br0");
        let ports = shown["ports"].as_array().unwrap().clone();
        ports.into_iter().find(|port| port["port"] == format!("tap:{name}"))
    };
    let setting = |key: &str| ask(&dir, "show br0")["bridge"]["settings"][key].clone();

    let first = dom0("br0=tap:line0,vlan=10,tap:line1,ageing_time=60");
    for words in [
        "set br0 ageing_time=70 fdb_max_learned=1000",
        "link set dev line0 isolated on",
        "link set dev line1 vlan 30 guard on",
        "port add tap:line2,vlan=50 br br0",
        "fdb add 02:00:00:00:00:01 dev line0 static",
        "fdb add 02:00:00:00:00:02 dev line2 static",
    ] {
        change(&dir, words);
    }
    // Of line0 and the ageing time the line says another thing, and of the rest the same.
    let second = restart(first, "br0=tap:line0,vlan=20,tap:line1,ageing_time=90");
    let (line0, line1, line2) = (port("line0").unwrap(), port("line1").unwrap(), port("line2").unwrap());
    assert_eq!((&line0["vlan"], &line0["flags"]["isolated"]), (&json!("20"), &json!(false)));
    assert_eq!((&line1["vlan"], &line1["flags"]["guard"]), (&json!("30"), &json!(true)));
    assert_eq!(line2["vlan"], "50");
    assert_eq!((setting("ageing_time"), setting("fdb_max_learned")), (json!(90), json!(1000)));
    // The entry of line0 was in VLAN 10, where it is not any more.
    let fdb = ask(&dir, "fdb show br br0 static");
    assert_eq!((fdb.as_array().unwrap().len(), &fdb[0]["mac"]), (1, &json!("02:00:00:00:00:02")));
    // What was forgotten does not come again with the first line.
    let third = restart(second, "br0=tap:line0,vlan=10,tap:line1,ageing_time=60");
    assert_eq!(port("line0").unwrap()["flags"]["isolated"], false);
    assert_eq!(setting("ageing_time"), 60);
    // A port that the line has now is as it says; a bridge that no line has is forgotten.
    let fourth = restart(third, "br0=tap:line0,vlan=10,tap:line1,tap:line2");
    assert_eq!(port("line2").unwrap()["vlan"], "trunk");
    let fifth = restart(fourth, "br1");
    let _sixth = restart(fifth, "br0=tap:line0,vlan=10,tap:line1");
    assert_eq!((port("line1").unwrap()["vlan"].clone(), port("line2")), (json!("trunk"), None));
    assert_eq!(setting("fdb_max_learned"), 8192);
}
