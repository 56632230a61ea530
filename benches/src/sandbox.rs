//! A row in namespaces of its own: this program runs itself once more in a new network namespace (and, for an ordinary user,
//! a new user namespace), so that a row neither sees nor leaves an interface of the host.

use crate::missing::not_started;
use nix::unistd::geteuid;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::process::{Command, Stdio};

/// Set in the process inside.
const INSIDE: &str = "XPV_BENCH_INSIDE";

/// Whether this process is the one inside.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// What this program prints inside with these arguments, one JSON value a line, measuring that program `xpv`.
///
/// # Errors
/// Why it measured nothing, or why there are no namespaces here.
pub fn run<T: DeserializeOwned>(arguments: &[&str], xpv: &Path) -> Result<Vec<T>, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let mut command = Command::new("unshare");
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .arg("--net")
        .arg(program)
        .args(arguments)
        .arg("--xpv")
        .arg(xpv)
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| not_started("unshare", "util-linux", &e))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let (notes, why) = split(&errors);
    notes.iter().for_each(|note| eprintln!("{note}"));
    if let Some(why) = why {
        return Err(why);
    }
    if !output.status.success() {
        let last = notes.last().copied().unwrap_or_default();
        return Err(refused(last).unwrap_or_else(|| format!("{}: {last}", output.status)));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))).collect()
}

/// Lines for the reader, and why a row was not measured.
fn split(errors: &str) -> (Vec<&str>, Option<String>) {
    let why = errors.rsplit_once(": not measured: ").map(|(_, why)| why.trim().to_owned());
    (errors.lines().filter(|line| !line.contains(": not measured: ")).collect(), why)
}

/// What to do about these words of `unshare`.
pub fn refused(said: &str) -> Option<String> {
    said.starts_with("unshare:").then(|| {
        format!(
            "this user may not make network namespaces ({said}): run as root, or allow it with \
             `sysctl user.max_user_namespaces=1000`, on Debian `kernel.unprivileged_userns_clone=1`, on Ubuntu \
             `kernel.apparmor_restrict_unprivileged_userns=0`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_namespaces_say_how_to_allow_them() {
        let said = refused("unshare: unshare failed: Operation not permitted").unwrap();
        assert!(said.contains("run as root") && said.contains("Operation not permitted"), "{said}");
        assert_eq!(refused("ip: no such device"), None);
    }

    #[test]
    fn reason_is_told_apart_from_notes() {
        let (notes, why) = split("Open vSwitch: absent\nN4: not measured: no iperf3\n");
        assert_eq!((notes, why.as_deref()), (vec!["Open vSwitch: absent"], Some("no iperf3")));
        assert_eq!(split("a note\n").1, None);
    }
}
