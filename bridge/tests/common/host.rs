//! Hosts: threads with their own network namespaces, in a test with its own user namespace.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc::{Sender, channel},
};

use bridge::port::{netdev, tap::Tap};

use nix::sched::{CloneFlags, unshare};
use testkit::random::bytes;

const INSIDE: &str = "XPV_BRIDGE_TEST_INSIDE";

/// Runs `body` of the test named `test` in its own user and network namespaces, where it may create interfaces: the
/// test program runs itself again under `unshare`.
pub(crate) fn in_namespaces(test: &str, body: fn()) {
    in_namespaces_without(test, &[], body);
}

/// Runs `body` as [`in_namespaces`], without the `capabilities`, each named as in `-net_admin`.
pub(crate) fn in_namespaces_without(test: &str, capabilities: &[&str], body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("the path of this program");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "setpriv"])
        .args(capabilities.iter().flat_map(|name| ["--bounding-set", name, "--inh-caps", name]))
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("`unshare` and `setpriv` are needed: install the package util-linux");
    assert!(
        output.status.success(),
        "in its own namespaces (are user namespaces allowed here?):\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread with its own network namespace, which runs jobs one after the other.
pub(crate) struct Host {
    jobs: Sender<Job>,
}

impl Host {
    pub(crate) fn new() -> Host {
        let (jobs, inbox) = channel::<Job>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            inbox.iter().for_each(|job| job());
        });
        let host = Host { jobs };
        host.run(|| sh("ip link set lo up"));
        host
    }

    /// Runs `job` there and waits for its result.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(job).recv().expect("the host's thread lives")
    }

    /// Runs `job` there; the result is sent to the channel.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> std::sync::mpsc::Receiver<T> {
        let (sender, result) = channel();
        self.jobs.send(Box::new(move || drop(sender.send(job())))).expect("the host's thread lives");
        result
    }
}

/// Runs a shell command, which must succeed, and returns its output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("a shell");
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command}: {out}{err} (`ip` is in the package iproute2, `ping` in iputils-ping)",
    );
    out.into_owned()
}

/// A host with a tap that has `10.0.0.N`.
pub(crate) fn tap_host(n: u8) -> (Host, Tap) {
    let host = Host::new();
    let tap = host.run(move || {
        let tap = Tap::open("tap%d").expect("a tap");
        netdev::set_up(tap.name()).expect("set up");
        sh(&format!("ip address add 10.0.0.{n}/24 dev {}", tap.name()));
        tap
    });
    (host, tap)
}

/// Sends bytes by TCP from one host to the other, which checks them.
pub(crate) fn transfer(from: &Host, to: &Host, address: &'static str, len: usize) {
    let listener = to.run(move || TcpListener::bind((address, 5000)).expect("bind"));
    let received = to.start(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(super::BOUND)).expect("time-out");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("read");
        received == bytes(1, len)
    });
    from.run(move || {
        let mut stream = TcpStream::connect((address, 5000)).expect("connect");
        stream.set_write_timeout(Some(super::BOUND)).expect("time-out");
        stream.write_all(&bytes(1, len)).expect("write");
    });
    assert!(received.recv().expect("the receiver lives"), "the bytes differ");
}
