//! The capabilities that a role keeps, of those that the process has.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

use super::Role;

/// What a role does with its capabilities.
fn needed(role: Role) -> &'static [Capability] {
    use Capability::*;
    match role {
        // Ends the processes of guests, whoever they belong to, and removes their directories.
        Role::Hypervisor => &[CAP_KILL, CAP_DAC_OVERRIDE],
        // Taps, packet sockets.
        Role::Dom0 => &[CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK],
        // Images of any owner, and who uses them: leases, and other processes' open files.
        Role::Opener => &[CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_LEASE, CAP_SYS_PTRACE],
        // Taps, in a network namespace that it enters (setns asks for CAP_SYS_ADMIN).
        Role::Guest => &[CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_DAC_OVERRIDE, CAP_IPC_LOCK],
    }
}

/// Drops all others, from the bounding set too; returns the names of those that are left.
pub(super) fn keep(role: Role) -> Result<String, CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = needed(role).iter().copied().filter(|c| permitted.contains(c)).collect();
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::all() {
            // A kernel older than this list does not know the last ones.
            if !kept.contains(&capability)
                && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
            {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    let mut names: Vec<String> = kept.iter().map(|c| c.to_string().to_lowercase()).collect();
    names.sort_unstable();
    Ok(if names.is_empty() { "none".into() } else { names.join(",") })
}
