//! A check of our own client: sockperf's ping-pong, where it is installed.

use crate::namespace::{ADDRESSES, Ends};
use crate::process::{Process, wait_until};
use std::fs;
use std::process::{Command, Stdio};

const PACKAGE: &str = "sockperf";
const PORT: u16 = 11_111;

/// Whether it is there.
pub(super) fn is_installed() -> bool {
    Command::new("sockperf").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Median and 99th percentile of round trips of 64 bytes by UDP, in microseconds.
///
/// # Errors
/// It does not start, or prints no percentiles.
pub(super) fn run(ends: &Ends) -> Result<[f64; 2], String> {
    let port = PORT.to_string();
    let address = ["-i", ADDRESSES[1], "-p", &port];
    let mut command = Command::new("sockperf");
    command.arg("server").args(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = ends.server.run(|| Process::start(&mut command, PACKAGE))?;
    wait_until("sockperf listens", || ends.server.run(listens))?;
    let mut client = Command::new("sockperf");
    client.arg("ping-pong").args(address).args(["--time", "1", "--full-rtt", "--msg-size", "64"]);
    let said = ends.client.output(&mut client, PACKAGE)?;
    let percentile = |percent: &str| {
        percentile(&said, percent).ok_or_else(|| format!("sockperf printed no percentile {percent}"))
    };
    Ok([percentile("50.000")?, percentile("99.000")?])
}

/// The figure of a line `sockperf: ---> percentile 99.000 =   58.123`.
fn percentile(said: &str, percent: &str) -> Option<f64> {
    let wanted = format!("percentile {percent} =");
    said.lines().find_map(|line| line.split_once(&wanted)?.1.trim().parse().ok())
}

/// Whether a process of the calling thread's namespace has the UDP port open (proc_pid_net(5)).
fn listens() -> bool {
    let text = fs::read_to_string("/proc/thread-self/net/udp").unwrap_or_default();
    text.contains(&format!(":{PORT:04X} "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_found_among_colours_and_others() {
        let said = "sockperf: ---> <MAX> observation = 2251.123\n\
            sockperf: ---> percentile 99.000 =   88.590\nsockperf: ---> percentile 50.000 =   58.123\n";
        assert_eq!((percentile(said, "50.000"), percentile(said, "99.000")), (Some(58.123), Some(88.59)));
        assert_eq!(percentile(said, "75.000"), None);
    }
}
