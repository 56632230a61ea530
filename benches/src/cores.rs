//! Which processors a row runs on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::OnceLock;

/// The first two processors that this process may use, as they were at the first call: a thread that was bound since
/// knows of one.
///
/// # Errors
/// There is only one.
pub fn two() -> Result<[usize; 2], String> {
    static FIRST: OnceLock<Result<[usize; 2], String>> = OnceLock::new();
    FIRST.get_or_init(allowed).clone()
}

fn allowed() -> Result<[usize; 2], String> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(|e| format!("sched_getaffinity: {e}"))?;
    let mut cores = (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false));
    match (cores.next(), cores.next()) {
        (Some(a), Some(b)) => Ok([a, b]),
        _ => Err("this row needs two processors, and this process may use one (see `taskset -p $$`)".into()),
    }
}

/// Binds the calling thread to one processor.
///
/// # Panics
/// If this process may not use it.
pub fn pin(core: usize) {
    let mut set = CpuSet::new();
    let bound = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    bound.expect("a processor that this process may use");
}
