//! Hosts: threads with a network namespace of their own, in a test that has a user namespace of its own.

use std::{
    process::Command,
    sync::mpsc::{Sender, channel},
};

use nix::sched::{CloneFlags, unshare};

const INSIDE: &str = "XPV_BRIDGE_TEST_INSIDE";

/// Runs `body` of the test named `test` in a user and a network namespace of its own, where it may do with
/// interfaces as it likes: the test program runs itself once more under `unshare`.
pub(crate) fn in_namespaces(test: &str, body: fn()) {
    in_namespaces_without(test, &[], body);
}

/// The same without the `capabilities`, each named as in `-net_admin`.
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

/// A thread with a network namespace. What it is given runs there, one thing after the other.
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

    /// Runs `job` there and waits for what it gives.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(job).recv().expect("the host's thread lives")
    }

    /// Runs `job` there; what it gives comes by the channel.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> std::sync::mpsc::Receiver<T> {
        let (answer, question) = channel();
        self.jobs.send(Box::new(move || drop(answer.send(job())))).expect("the host's thread lives");
        question
    }
}

/// Runs a shell command, which must succeed, and gives what it printed.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("a shell");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{command}: {out}{err} (`ip` is in the package iproute2, `ping` in iputils-ping)",
    );
    out.into_owned()
}
