//! Domains that exit or are killed or destroyed, and their successors.

use super::{TIMEOUT, byte, readable, sandbox};
use event_channel::{EventChannels, WaitChannel};
use event_loop::Connector;
use grant_table::{Access, GrantTable};
use hypervisor::Error;
use hypervisor::local::{Domain, DomainEvent, Sandbox};
use ring_abi::{DomId, EventPort, GrantRef};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

const DOM0: DomId = DomId::DOM0;
const ONE: DomId = DomId(1);

/// Another process that joins as a domain: this same program, with its role in the environment.
pub(crate) struct Process {
    child: Child,
    /// The numbers that it printed once it was ready.
    pub(crate) output: Vec<u32>,
}

impl Process {
    pub(crate) fn start(dir: &Path, role: &str, numbers: &[u32]) -> Self {
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
        Self { child, output: numbers.map(|n| n.parse().expect("a number")).collect() }
    }

    /// Kills the process and reaps it.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

/// Not a test: the body of a child process, which runs until it is killed or its parent closes the pipe.
#[test]
fn child() {
    let Ok(role) = std::env::var("XPV_TEST_ROLE") else { return };
    let dir = std::env::var("XPV_TEST_DIR").expect("a directory");
    let numbers = std::env::var("XPV_TEST_NUMBERS").expect("numbers");
    let numbers: Vec<u32> = numbers.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    let _resources: Box<dyn std::any::Any> = match role.as_str() {
        "guest" => {
            let guest = Domain::join(dir, ONE).expect("join");
            let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
            shared.slice(0, 1).expect("inside").copy_from(&[numbers[0] as u8][..]);
            let channel = guest.alloc_unbound(DOM0).expect("alloc_unbound");
            println!("ready: {} {}", shared.refs()[0], channel.port());
            Box::new((guest, shared, channel))
        }
        "dom0" => {
            let dom0 = Domain::join(dir, DOM0).expect("join");
            let mapping = dom0.map(ONE, &[GrantRef(numbers[0])], Access::ReadWrite).expect("map");
            let channel = dom0.bind_interdomain(ONE, EventPort(numbers[1])).expect("bind_interdomain");
            println!("ready:");
            Box::new((dom0, mapping, channel))
        }
        // It keeps no token.
        "silent" => {
            let joined = super::succession::join_silently(Path::new(&dir), ONE);
            println!("ready:");
            Box::new(joined)
        }
        other => panic!("no role {other}"),
    };
    std::io::stdout().flush().expect("flush");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn wait_for_death(sandbox: &Sandbox, domid: DomId) {
    assert!(sandbox.control().await_death(domid).expect("watch").wait(TIMEOUT).expect("wait"));
}

fn assert_closed(channel: &dyn WaitChannel) {
    loop {
        assert!(readable(channel), "the end was not reported");
        match channel.take() {
            Ok(_) => {}
            Err(event_channel::Error::Closed) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn masked_end_is_told_that_the_other_is_closed() {
    let sandbox = sandbox();
    let dom0 = sandbox.join(DOM0).expect("join");
    let guest = sandbox.join(ONE).expect("join");
    let channel = guest.alloc_unbound(DOM0).expect("alloc_unbound");
    let bound = dom0.bind_interdomain(ONE, channel.port()).expect("bind_interdomain");
    bound.mask();
    channel.notify().expect("notify");
    drop(channel);
    assert_closed(&*bound);
}

#[test]
fn killed_guest_stays_mapped_and_its_successor_has_a_new_arena() {
    let sandbox = sandbox();
    let dom0 = sandbox.join(DOM0).expect("join");
    let guest = Process::start(sandbox.dir(), "guest", &[41]);
    let refs = [GrantRef(guest.output[0])];
    let mapping = dom0.map(ONE, &refs, Access::ReadWrite).expect("map");
    let channel = dom0.bind_interdomain(ONE, EventPort(guest.output[1])).expect("bind_interdomain");
    assert_eq!(byte(mapping.slice(0, 0, 1)), 41);
    guest.kill();
    assert_closed(&*channel);
    assert!(matches!(channel.notify(), Err(event_channel::Error::Closed)));
    assert_eq!(byte(mapping.slice(0, 0, 1)), 41, "what is mapped stays");
    wait_for_death(&sandbox, ONE);
    let error = dom0.map(ONE, &refs, Access::ReadWrite).expect_err("its grants ended");
    assert!(matches!(error, grant_table::Error::NoSuchDomain(ONE)), "{error}");

    // Joining succeeds before the broker has processed the exit; here two in a row.
    Process::start(sandbox.dir(), "guest", &[42]).kill();
    let guest = Process::start(sandbox.dir(), "guest", &[43]);
    let again = dom0.map(ONE, &[GrantRef(guest.output[0])], Access::ReadWrite).expect("map");
    assert_eq!((byte(again.slice(0, 0, 1)), byte(mapping.slice(0, 0, 1))), (43, 41));
    drop(mapping);
    assert_eq!(byte(again.slice(0, 0, 1)), 43);
    guest.kill();
}

#[test]
fn killed_dom0_is_unpinned_and_its_successor_maps_the_same_grants() {
    let sandbox = sandbox();
    let guest = sandbox.join(ONE).expect("join");
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let still_granted = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    still_granted.slice(0, 1).expect("inside").copy_from(&[7u8][..]);
    let channel = guest.alloc_unbound(DOM0).expect("alloc_unbound");
    let dom0 = Process::start(sandbox.dir(), "dom0", &[shared.refs()[0].0, channel.port().0]);
    drop(shared);
    assert_eq!(guest.quarantined(DOM0), 1, "dom0 has it mapped");
    dom0.kill();
    assert_closed(&*channel);
    wait_for_death(&sandbox, DOM0);
    // The next share frees the quarantined page.
    drop(guest.share(DOM0, 1, Access::ReadWrite).expect("share"));
    assert_eq!(guest.quarantined(DOM0), 0, "no pins of the killed dom0");
    let dom0 = sandbox.join(DOM0).expect("join again");
    let mapping =
        dom0.map(ONE, still_granted.refs(), Access::ReadWrite).expect("the guest's arena is still valid");
    assert_eq!(byte(mapping.slice(0, 0, 1)), 7);
}

#[test]
fn domain_with_a_live_resource_stays_a_member() {
    let sandbox = sandbox();
    let dom0 = sandbox.join(DOM0).expect("join");
    let guest = sandbox.join(ONE).expect("join");
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let unbound = guest.alloc_unbound(DOM0).expect("alloc_unbound");
    let channel = dom0.bind_interdomain(ONE, unbound.port()).expect("bind_interdomain");
    drop(guest);
    assert!(sandbox.control().get(ONE).expect("get").pid.is_some());
    let mapping = dom0.map(ONE, shared.refs(), Access::ReadWrite).expect("still granted");
    drop(unbound);
    assert_closed(&*channel);
    drop(mapping);
    shared.end().expect("no page is mapped");
    wait_for_death(&sandbox, ONE);
    drop(sandbox.join(ONE).expect("join again"));
}

#[test]
fn grant_to_a_destroyed_domain_does_not_pass_to_the_next_of_its_number() {
    let sandbox = sandbox();
    let dom0 = sandbox.join(DOM0).expect("join");
    let guest = sandbox.join(ONE).expect("join");
    let secret = dom0.share(ONE, 1, Access::ReadOnly).expect("share");
    drop(guest.map(DOM0, secret.refs(), Access::ReadOnly).expect("map"));
    sandbox.control().destroy(ONE).expect("destroy");
    assert!(guest.share(DOM0, 1, Access::ReadWrite).is_err(), "it is no member any more");
    assert!(matches!(dom0.share(ONE, 1, Access::ReadOnly), Err(grant_table::Error::NoSuchDomain(ONE))));
    let next = sandbox.join(ONE).expect("another domain of that number");
    assert!(next.map(DOM0, secret.refs(), Access::ReadOnly).is_err(), "granted to its predecessor");
    let shared = dom0.share(ONE, 1, Access::ReadOnly).expect("a new arena");
    next.map(DOM0, shared.refs(), Access::ReadOnly).expect("map");
}

#[test]
fn watch_of_a_join_or_death_fires() {
    let sandbox = sandbox();
    let control = sandbox.control();
    let joined = control.await_join(ONE).expect("watch");
    let never = control.await_join(DomId(2)).expect("watch");
    let guest = sandbox.join(ONE).expect("join");
    assert!(joined.wait(TIMEOUT).expect("wait"));
    let died = control.await_death(ONE).expect("watch");
    assert!(!control.await_death(ONE).expect("watch").wait(std::time::Duration::ZERO).expect("wait"));
    drop(guest);
    assert!(died.wait(TIMEOUT).expect("wait"));
    control.destroy(DomId(2)).expect("destroy");
    assert!(matches!(never.wait(TIMEOUT), Err(Error::NoSuchDomain(DomId(2)))));
    assert!(matches!(
        control.await_join(DomId(9)).expect("watch").wait(TIMEOUT),
        Err(Error::NoSuchDomain(_))
    ));
}

#[test]
fn closed_connections_to_the_store_do_not_count() {
    let sandbox = Sandbox::with_store(Box::new(drop)).expect("a broker");
    let guest = sandbox.join(ONE).expect("join");
    for count in 0..600 {
        assert!(guest.connect().is_ok(), "connection {count} is refused, though all others are closed");
    }
}

#[test]
fn open_connections_to_the_store_are_bounded() {
    let open = Arc::new(Mutex::new(Vec::new()));
    let sink = open.clone();
    let sandbox = Sandbox::with_store(Box::new(move |event| sink.lock().expect("not poisoned").push(event)))
        .expect("a broker");
    let guest = sandbox.join(ONE).expect("join");
    let refused_after = (0..600).find(|_| guest.connect().is_err()).expect("a bound");
    open.lock().expect("not poisoned").pop();
    assert!(guest.connect().is_ok(), "after one of {refused_after} was closed");
    assert!(guest.connect().is_err());
}

#[test]
fn domain_that_connects_and_exits_is_reported_to_the_store() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let sandbox = Sandbox::with_store(Box::new(move |event| {
        sink.lock().expect("not poisoned").push(match event {
            DomainEvent::Connect { domid, mut stream, .. } => {
                stream.write_all(&[domid.0 as u8 + 100]).expect("write");
                (domid, true)
            }
            DomainEvent::Exited { domid } => (domid, false),
        });
    }))
    .expect("a broker");
    let guest = sandbox.join(ONE).expect("join");
    let mut byte = [0];
    guest.connect().expect("store").read_exact(&mut byte).expect("read");
    assert_eq!(byte, [101]);
    drop(guest);
    wait_for_death(&sandbox, ONE);
    sandbox.control().destroy(ONE).expect("destroy");
    assert_eq!(*events.lock().expect("not poisoned"), [(ONE, true), (ONE, false)]);
}

#[test]
fn domains_without_their_broker_keep_grants_and_channels() {
    let sandbox = sandbox();
    let dom0 = sandbox.join(DOM0).expect("join");
    let guest = sandbox.join(ONE).expect("join");
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let unbound = guest.alloc_unbound(DOM0).expect("alloc_unbound");
    let channel = dom0.bind_interdomain(ONE, unbound.port()).expect("bind_interdomain");
    assert!(channel.take().expect("take"));
    drop(dom0.map(ONE, shared.refs(), Access::ReadWrite).expect("map"));
    drop(sandbox);
    drop(dom0.map(ONE, shared.refs(), Access::ReadWrite).expect("map"));
    unbound.notify().expect("notify");
    assert!(readable(&*channel) && channel.take().expect("take"));
    guest.share(DOM0, 1, Access::ReadWrite).expect("an existing arena needs no broker");
    assert!(matches!(
        guest.alloc_unbound(DOM0),
        Err(event_channel::Error::Closed | event_channel::Error::Hypervisor(_))
    ));
}
