//! Two network namespaces, and what joins them.

use super::echo;
use super::open_vswitch::OpenVswitch;
use crate::missing::no_bridge;
use crate::namespace::{Ends, INTERFACE, Namespace, ip};
use crate::process::Process;
use crate::xpv::Machine;
use std::path::Path;
use std::process::{Command, Stdio};

/// The guests of ours.
const GUESTS: [&str; 2] = ["alice", "bob"];

/// Two network namespaces whose interfaces reach each other.
pub struct Link {
    joined: Joined,
    /// The namespaces.
    pub ends: Ends,
}

/// What joins them, and keeps them joined while it lives.
enum Joined {
    Xpv(Machine),
    Tapfwd(Process),
    OpenVswitch(OpenVswitch),
    /// It is part of the network namespace of this process.
    LinuxBridge,
}

impl Link {
    /// By taps of two guests with a vif each, on a bridge of xpv's.
    ///
    /// # Errors
    /// The machine does not come up.
    pub fn xpv(program: &Path) -> Result<Self, String> {
        let machine = Machine::start(program)?;
        let ends = Ends::new()?;
        for (number, (guest, namespace)) in GUESTS.into_iter().zip(ends.both()).enumerate() {
            machine.create(
                guest,
                &format!("vif = ['mac=00:16:3e:00:00:{number:02x}']"),
                &namespace.path(),
            )?;
        }
        Self::new(Joined::Xpv(machine), ends)
    }

    /// By two taps, between which that program `tapfwd` forwards.
    ///
    /// # Errors
    /// It does not start.
    pub fn tapfwd(program: &Path) -> Result<Self, String> {
        let ends = Ends::new()?;
        let mut command = Command::new(program);
        command.args(ends.both().map(Namespace::path)).stdin(Stdio::piped());
        let process = Process::start_ready(&mut command, "none: it is one of benches'")?;
        Self::new(Joined::Tapfwd(process), ends)
    }

    /// By a Linux bridge in this process's namespace and two veth pairs.
    ///
    /// # Errors
    /// The kernel has none, or this process is in a namespace with one already.
    pub fn veth() -> Result<Self, String> {
        let ends = Ends::new()?;
        let missing = |why: String| no_bridge(&why).unwrap_or(why);
        ip("link add br0 type bridge").map_err(missing)?;
        ip("link set br0 up")?;
        for (end, namespace) in ["a0", "b0"].into_iter().zip(ends.both()) {
            ip(&format!("link add {end} type veth peer name {INTERFACE}")).map_err(missing)?;
            ip(&format!("link set {INTERFACE} netns {}", namespace.path()))?;
            ip(&format!("link set {end} master br0"))?;
            ip(&format!("link set {end} up"))?;
        }
        Self::new(Joined::LinuxBridge, ends)
    }

    /// By Open vSwitch's forwarding in user space, between two taps.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub(super) fn open_vswitch() -> Result<Self, String> {
        let ends = Ends::new()?;
        let switch = OpenVswitch::start(ends.both())?;
        Self::new(Joined::OpenVswitch(switch), ends)
    }

    /// Gives the interfaces their addresses, and waits until they reach each other.
    fn new(joined: Joined, ends: Ends) -> Result<Self, String> {
        ends.configure()?;
        echo::wait(&ends)?;
        Ok(Self { joined, ends })
    }

    /// The processes that a frame goes through, in its order.
    ///
    /// # Errors
    /// A guest does not run.
    pub fn processes(&self) -> Result<Vec<(String, u32)>, String> {
        let named = |name: &str, pid| (name.to_owned(), pid);
        match &self.joined {
            Joined::Xpv(machine) => Ok(vec![
                named("guest, the client's", machine.guest(GUESTS[0])?),
                named("dom0", machine.dom0()),
                named("guest, the server's", machine.guest(GUESTS[1])?),
            ]),
            Joined::Tapfwd(process) => Ok(vec![named("tapfwd", process.pid())]),
            Joined::OpenVswitch(switch) => Ok(vec![named("ovs-vswitchd", switch.pid())]),
            Joined::LinuxBridge => Ok(Vec::new()),
        }
    }
}
