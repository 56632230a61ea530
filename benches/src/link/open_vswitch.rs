//! Open vSwitch with its `netdev` datapath: a switch in user space, whose internal ports are taps.
//!
//! Database and switch run in a directory of their own, beside any that the host runs.

use crate::namespace::{INTERFACE, Namespace, ip};
use crate::process::{Process, output, wait_until};
use std::path::Path;
use std::process::{Command, Stdio};

const PACKAGE: &str = "openvswitch-switch";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// The processes; their files are removed with them.
pub(super) struct OpenVswitch {
    switch: Process,
    _database: Process,
    _directory: tempfile::TempDir,
}

impl OpenVswitch {
    /// A switch with a tap in each of these namespaces.
    ///
    /// # Errors
    /// It does not start, or has no `netdev` datapath.
    pub(super) fn start(namespaces: [&Namespace; 2]) -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("xpv-bench").tempdir();
        let directory = directory.map_err(|e| format!("a directory for Open vSwitch: {e}"))?;
        let path = directory.path();
        let file = |name: &str| path.join(name).display().to_string();
        output(Command::new("ovsdb-tool").args(["create", &file("conf.db"), SCHEMA]), PACKAGE)?;
        let remote = format!("unix:{}", file("db.sock"));
        let mut database = program("ovsdb-server", path);
        database.arg(file("conf.db")).arg(format!("--remote=p{remote}"));
        let database = Process::start(&mut database, PACKAGE)?;
        wait_until("ovsdb-server listens", || path.join("db.sock").exists())?;
        let vsctl = |arguments: &str| {
            let mut command = Command::new("ovs-vsctl");
            command.arg(format!("--db={remote}")).arg("--timeout=20").args(arguments.split(' '));
            output(&mut command, PACKAGE)
        };
        vsctl("--no-wait init")?;
        let switch = Process::start(program("ovs-vswitchd", path).arg(&remote), PACKAGE)?;
        vsctl("add-br ovs0 -- set bridge ovs0 datapath_type=netdev")?;
        for (tap, namespace) in ["ovsa", "ovsb"].into_iter().zip(namespaces) {
            vsctl(&format!("add-port ovs0 {tap} -- set interface {tap} type=internal"))?;
            ip(&format!("link set {tap} netns {} name {INTERFACE}", namespace.path()))?;
        }
        Ok(Self { switch, _database: database, _directory: directory })
    }

    /// The process of the switch.
    pub(super) fn pid(&self) -> u32 {
        self.switch.pid()
    }
}

/// A daemon that keeps its files in `directory`, and its words to itself.
fn program(name: &str, directory: &Path) -> Command {
    let mut command = Command::new(name);
    command.env("OVS_RUNDIR", directory).env("OVS_DBDIR", directory).env("OVS_LOGDIR", directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
