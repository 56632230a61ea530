//! Network namespaces that exist as long as a value: one, and two that something joins.

use crate::process::output;
use bridge::port::netdev;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Command;

/// The interface that every namespace of a row has.
pub const INTERFACE: &str = "eth0";

/// A network namespace.
pub struct Namespace(File);

impl Namespace {
    /// Makes a namespace with a loopback interface. It has no IPv6, whose own packets would be counted.
    ///
    /// # Errors
    /// This process has not the privilege.
    pub fn new() -> Result<Self, String> {
        let made = || {
            let failed = |e: &dyn std::fmt::Display| format!("a network namespace: {e}");
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed(&e))?;
            netdev::set_up("lo").map_err(|e| failed(&e))?;
            // A kernel without IPv6 has no such file.
            let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
            File::open("/proc/thread-self/ns/net").map(Self).map_err(|e| failed(&e))
        };
        std::thread::scope(|scope| scope.spawn(made).join().expect("no panic"))
    }

    /// A path that other processes can open while this value lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `body` in the namespace: sockets that it makes and programs that it starts stay there.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("a namespace that this process made");
            body()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().expect("no panic"))
    }

    /// Runs a program to its end, and gives what it printed.
    ///
    /// # Errors
    /// It is not installed, or fails.
    pub fn output(&self, command: &mut Command, package: &str) -> Result<String, String> {
        self.run(|| output(command, package))
    }

    /// Runs `ip` with these arguments, which are separated by spaces.
    ///
    /// # Errors
    /// What it says.
    pub fn ip(&self, arguments: &str) -> Result<(), String> {
        self.run(|| ip(arguments))
    }
}

/// The addresses of both ends' interfaces.
pub const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// The two ends of a path.
pub struct Ends {
    /// Where clients are, and senders.
    pub client: Namespace,
    /// Where servers are, and receivers.
    pub server: Namespace,
}

impl Ends {
    /// Two namespaces that nothing joins yet.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub fn new() -> Result<Self, String> {
        Ok(Self { client: Namespace::new()?, server: Namespace::new()? })
    }

    /// Both, the client's first.
    pub fn both(&self) -> [&Namespace; 2] {
        [&self.client, &self.server]
    }

    /// Gives the interfaces, which are called [`INTERFACE`], their addresses, and sets them up.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn configure(&self) -> Result<(), String> {
        for (namespace, address) in self.both().into_iter().zip(ADDRESSES) {
            namespace.ip(&format!("address add {address}/24 dev {INTERFACE}"))?;
            namespace.ip(&format!("link set {INTERFACE} up"))?;
        }
        Ok(())
    }
}

/// Runs `ip` in the calling thread's namespace.
///
/// # Errors
/// What it says.
pub fn ip(arguments: &str) -> Result<(), String> {
    output(Command::new("ip").args(arguments.split(' ')), "iproute2").map(drop)
}
