//! Domains that die, in every way, and those that come after them.

use super::{BOUND, byte, readable, sandbox};
use hypervisor::local::{Domain, Event, Sandbox};
use hypervisor::{Access, Channel, DomId, Error, EventPort, GrantRef, Hypervisor};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

const DOM0: DomId = DomId::DOM0;
const ONE: DomId = DomId(1);

/// Another process that is a domain: this same program, told by its environment what to do.
struct Process {
    child: Child,
    /// What it said once it was ready: numbers.
    said: Vec<u32>,
}

impl Process {
    fn start(dir: &Path, role: &str, numbers: &[u32]) -> Self {
        let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "death::child", "--nocapture", "--test-threads=1"])
            .env("XPV_TEST_ROLE", role)
            .env("XPV_TEST_DIR", dir)
            .env("XPV_TEST_NUMBERS", numbers.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = lines.map(|line| line.expect("text")).find(|line| line.contains("ready:"));
        let ready = ready.expect("the process is ready");
        let numbers = ready.split("ready:").nth(1).unwrap_or_default().split_whitespace();
        Self { child, said: numbers.map(|n| n.parse().expect("a number")).collect() }
    }

    /// SIGKILL, and nothing of it is left.
    fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

/// Not a test: what a child process does, until it is killed or its parent is gone.
#[test]
fn child() {
    let Ok(role) = std::env::var("XPV_TEST_ROLE") else { return };
    let dir = std::env::var("XPV_TEST_DIR").expect("a directory");
    let numbers = std::env::var("XPV_TEST_NUMBERS").expect("numbers");
    let numbers: Vec<u32> = numbers.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    let _keep: Box<dyn std::any::Any> = match role.as_str() {
        "guest" => {
            let guest = Domain::join(dir, ONE).expect("join");
            let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
            shared.slice(0, 1).expect("inside").copy_from(&[numbers[0] as u8][..]);
            let channel = guest.alloc_unbound(DOM0).expect("listen");
            println!("ready: {} {}", shared.refs()[0], channel.port());
            Box::new((guest, shared, channel))
        }
        "dom0" => {
            let dom0 = Domain::join(dir, DOM0).expect("join");
            let mapping = dom0.map(ONE, &[GrantRef(numbers[0])], Access::ReadWrite).expect("map");
            let channel = dom0.bind_interdomain(ONE, EventPort(numbers[1])).expect("connect");
            println!("ready:");
            Box::new((dom0, mapping, channel))
        }
        other => panic!("no role {other}"),
    };
    std::io::stdout().flush().expect("flush");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn wait_for_death(sandbox: &Sandbox, domid: DomId) {
    assert!(sandbox.control().await_death(domid).expect("watch").wait(BOUND).expect("wait"));
}

fn assert_closed(channel: &dyn Channel) {
    loop {
        assert!(readable(channel), "nobody told of the end");
        match channel.take() {
            Ok(_) => {}
            Err(Error::Closed) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_killed_guest_leaves_its_memory_and_a_successor_starts_afresh() {
    let sandbox = sandbox();
    let dom0 = sandbox.join(DOM0).expect("join");
    let guest = Process::start(sandbox.dir(), "guest", &[41]);
    let refs = [GrantRef(guest.said[0])];
    let mapping = dom0.map(ONE, &refs, Access::ReadWrite).expect("map");
    let channel = dom0.bind_interdomain(ONE, EventPort(guest.said[1])).expect("connect");
    assert_eq!(byte(mapping.slice(0, 0, 1)), 41);
    guest.kill();
    assert_closed(&*channel);
    assert!(matches!(channel.notify(), Err(Error::Closed)));
    assert_eq!(byte(mapping.slice(0, 0, 1)), 41, "what is mapped stays");
    wait_for_death(&sandbox, ONE);
    let error = dom0.map(ONE, &refs, Access::ReadWrite).expect_err("the dead grant nothing");
    assert!(matches!(error, Error::NoSuchDomain(ONE)), "{error}");

    // Joining does not wait for the broker to notice a death; here two of them in a row.
    Process::start(sandbox.dir(), "guest", &[42]).kill();
    let guest = Process::start(sandbox.dir(), "guest", &[43]);
    let again = dom0.map(ONE, &[GrantRef(guest.said[0])], Access::ReadWrite).expect("map");
    assert_eq!((byte(again.slice(0, 0, 1)), byte(mapping.slice(0, 0, 1))), (43, 41));
    drop(mapping);
    assert_eq!(byte(again.slice(0, 0, 1)), 43);
    guest.kill();
}

#[test]
fn a_killed_control_domain_lets_go_and_its_successor_maps_the_same_grants() {
    let sandbox = sandbox();
    let guest = sandbox.join(ONE).expect("join");
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let kept = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    kept.slice(0, 1).expect("inside").copy_from(&[7u8][..]);
    let channel = guest.alloc_unbound(DOM0).expect("listen");
    let dom0 = Process::start(sandbox.dir(), "dom0", &[shared.refs()[0].0, channel.port().0]);
    drop(shared);
    assert_eq!(guest.quarantined(DOM0), 1, "the living have it mapped");
    dom0.kill();
    assert_closed(&*channel);
    wait_for_death(&sandbox, DOM0);
    // The next share takes back what the dead one held.
    drop(guest.share(DOM0, 1, Access::ReadWrite).expect("share"));
    assert_eq!(guest.quarantined(DOM0), 0, "the dead hold nothing");
    let dom0 = sandbox.join(DOM0).expect("join again");
    let mapping = dom0.map(ONE, kept.refs(), Access::ReadWrite).expect("arenas of the living survive");
    assert_eq!(byte(mapping.slice(0, 0, 1)), 7);
}

#[test]
fn a_domain_lives_as_long_as_what_it_made() {
    let sandbox = sandbox();
    let (dom0, guest) = (sandbox.join(DOM0).expect("join"), sandbox.join(ONE).expect("join"));
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let listening = guest.alloc_unbound(DOM0).expect("listen");
    let channel = dom0.bind_interdomain(ONE, listening.port()).expect("connect");
    drop(guest);
    assert!(sandbox.control().get(ONE).expect("get").pid.is_some());
    let mapping = dom0.map(ONE, shared.refs(), Access::ReadWrite).expect("still granted");
    drop(listening);
    assert_closed(&*channel);
    drop(mapping);
    shared.end().expect("nothing is mapped");
    wait_for_death(&sandbox, ONE);
    drop(sandbox.join(ONE).expect("another may come"));
}

#[test]
fn what_was_granted_to_a_destroyed_domain_does_not_pass_to_the_next_of_its_number() {
    let sandbox = sandbox();
    let (dom0, guest) = (sandbox.join(DOM0).expect("join"), sandbox.join(ONE).expect("join"));
    let secret = dom0.share(ONE, 1, Access::ReadOnly).expect("share");
    drop(guest.map(DOM0, secret.refs(), Access::ReadOnly).expect("map"));
    sandbox.control().destroy(ONE).expect("destroy");
    assert!(guest.share(DOM0, 1, Access::ReadWrite).is_err(), "its membership is over");
    assert!(matches!(dom0.share(ONE, 1, Access::ReadOnly), Err(Error::NoSuchDomain(ONE))));
    let next = sandbox.join(ONE).expect("another domain of that number");
    assert!(next.map(DOM0, secret.refs(), Access::ReadOnly).is_err(), "granted to its predecessor");
    let shared = dom0.share(ONE, 1, Access::ReadOnly).expect("a fresh arena");
    next.map(DOM0, shared.refs(), Access::ReadOnly).expect("map");
}

#[test]
fn watches_tell_of_joining_and_dying() {
    let sandbox = sandbox();
    let control = sandbox.control();
    let joined = control.await_join(ONE).expect("watch");
    let never = control.await_join(DomId(2)).expect("watch");
    let guest = sandbox.join(ONE).expect("join");
    assert!(joined.wait(BOUND).expect("wait"));
    let died = control.await_death(ONE).expect("watch");
    assert!(!control.await_death(ONE).expect("watch").wait(std::time::Duration::ZERO).expect("wait"));
    drop(guest);
    assert!(died.wait(BOUND).expect("wait"));
    control.destroy(DomId(2)).expect("destroy");
    assert!(matches!(never.wait(BOUND), Err(Error::NoSuchDomain(DomId(2)))));
    assert!(matches!(control.await_join(DomId(9)).expect("watch").wait(BOUND), Err(Error::NoSuchDomain(_))));
}

#[test]
fn the_store_is_told_who_connects_and_who_is_gone() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let sandbox = Sandbox::with_store(Box::new(move |event| {
        tell.lock().expect("told").push(match event {
            Event::Connect { domid, mut stream } => {
                stream.write_all(&[domid.0 as u8 + 100]).expect("write");
                (domid, true)
            }
            Event::Gone { domid } => (domid, false),
        });
    }))
    .expect("a broker");
    let guest = sandbox.join(ONE).expect("join");
    let mut byte = [0];
    guest.store().expect("store").read_exact(&mut byte).expect("read");
    assert_eq!(byte, [101]);
    drop(guest);
    wait_for_death(&sandbox, ONE);
    sandbox.control().destroy(ONE).expect("destroy");
    assert_eq!(*told.lock().expect("told"), [(ONE, true), (ONE, false)]);
}

#[test]
fn without_its_broker_a_machine_goes_on() {
    let sandbox = sandbox();
    let (dom0, guest) = (sandbox.join(DOM0).expect("join"), sandbox.join(ONE).expect("join"));
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let listening = guest.alloc_unbound(DOM0).expect("listen");
    let channel = dom0.bind_interdomain(ONE, listening.port()).expect("connect");
    assert!(channel.take().expect("take"));
    drop(dom0.map(ONE, shared.refs(), Access::ReadWrite).expect("map"));
    drop(sandbox);
    drop(dom0.map(ONE, shared.refs(), Access::ReadWrite).expect("map"));
    listening.notify().expect("notify");
    assert!(readable(&*channel) && channel.take().expect("take"));
    guest.share(DOM0, 1, Access::ReadWrite).expect("arenas that are known need no broker");
    assert!(matches!(guest.alloc_unbound(DOM0), Err(Error::Closed | Error::Io { .. })));
}
