//! The files, ports and abstract sockets that a role may use, by Landlock (landlock(7)).

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

use super::{Files, Role};

/// What this program knows of: Linux 6.12.
const KNOWN: ABI = ABI::V6;

/// Lets the role use the machine's directory, what it reads of the kernel, and its device nodes. Returns what is in force.
///
/// The process that opens images opens them anywhere, and finds out who else has them open, which Landlock would not let it see: what it
/// may do to files is restricted by its system calls.
pub(super) fn restrict(role: Role, dir: &Path) -> Result<Files, RulesetError> {
    if role == Role::Opener {
        return Ok(Files::Existing);
    }
    let all = AccessFs::from_all(KNOWN);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut ruleset = allow(ruleset, dir, of_machine(role))?;
    for path in ["/proc", "/sys"] {
        ruleset = allow(ruleset, Path::new(path), read)?;
    }
    // A static program has its randomness from the nodes, and looks at /dev/random for whether there is enough.
    for path in ["/dev/null", "/dev/urandom", "/dev/random"].iter().chain(devices(role)) {
        ruleset = allow(ruleset, Path::new(path), device)?;
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Files::OfItsRole,
        RulesetStatus::PartiallyEnforced => Files::OfItsRoleInPart,
        RulesetStatus::NotEnforced => {
            tracing::warn!("sandbox: this kernel has no Landlock: files are not restricted");
            Files::Any
        }
    })
}

/// What a role does in the machine's directory.
fn of_machine(role: Role) -> BitFlags<AccessFs> {
    match role {
        // Its control socket, and the logs of requests in flight.
        Role::Dom0 => make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | Truncate | MakeDir | MakeReg | MakeSock | RemoveFile
        }),
        _ => AccessFs::from_all(KNOWN) & !AccessFs::Execute,
    }
}

/// The device nodes that a role uses. Of Xen's not privcmd and hypercall, which are the whole host.
fn devices(role: Role) -> &'static [&'static str] {
    match role {
        Role::Dom0 => &["/dev/net/tun", "/dev/xen/gntdev", "/dev/xen/evtchn", "/dev/xen/xenbus"],
        Role::Guest => {
            &["/dev/net/tun", "/dev/xen/gntdev", "/dev/xen/gntalloc", "/dev/xen/evtchn", "/dev/xen/xenbus"]
        }
        Role::Hypervisor | Role::Opener => &[],
    }
}

/// Allows access below a path, or to a file; one that does not exist is left out.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => ruleset.add_rule(PathBeneath::new(fd, access)),
        Err(_) => Ok(ruleset),
    }
}
