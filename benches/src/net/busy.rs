//! Another program that has something to do: a process that runs as long as a value lives.

use crate::process::Process;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::process::{Command, Stdio};

/// Starts a process that only counts, on whichever of these processors the kernel puts it.
///
/// # Errors
/// There is no shell, or this process may not use these processors.
pub(super) fn start(cores: [usize; 2]) -> Result<Process, String> {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
    let process = Process::start(&mut command, "dash")?;
    let mut set = CpuSet::new();
    let allowed = cores.into_iter().try_for_each(|core| set.set(core));
    // It has inherited the one processor of the thread that started it.
    allowed
        .and_then(|()| sched_setaffinity(Pid::from_raw(process.pid().cast_signed()), &set))
        .map_err(|e| format!("processors {cores:?} for a busy process: {e}"))?;
    Ok(process)
}
