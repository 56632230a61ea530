//! Bytes of TCP from one namespace to the other: iperf3.

use crate::namespace::{ADDRESSES, Ends};
use crate::process::{Process, wait_until};
use std::fs;
use std::process::{Command, Stdio};

const PACKAGE: &str = "iperf3";
/// Where the server listens.
const PORT: u16 = 5201;

/// Gbit/s that arrive in a second of `streams` streams at once.
///
/// # Errors
/// iperf3 is not installed, or fails.
pub(super) fn run(ends: &Ends, streams: u32) -> Result<f64, String> {
    let address = ADDRESSES[1];
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--bind", address, "--port", &PORT.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let _server = ends.server.run(|| Process::start(&mut command, PACKAGE))?;
    wait_until("iperf3 listens", || ends.server.run(listens))?;
    let mut client = Command::new("iperf3");
    client.args(["--client", address, "--port", &PORT.to_string(), "--time", "1", "--json"]);
    let said = ends.client.output(client.args(["--parallel", &streams.to_string()]), PACKAGE)?;
    let report: serde_json::Value =
        serde_json::from_str(&said).map_err(|e| format!("iperf3's output: {e}"))?;
    let received = report["end"]["sum_received"]["bits_per_second"].as_f64();
    received.map(|bits| bits / 1e9).ok_or_else(|| format!("iperf3: {}", report["error"]))
}

/// Whether a process of the calling thread's namespace listens on the port: state 0A (proc_pid_net(5)).
fn listens() -> bool {
    let text = fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    let port = format!(":{PORT:04X} ");
    text.lines().any(|line| line.contains(&port) && line.contains(" 0A "))
}
