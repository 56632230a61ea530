//! The files, ports and abstract sockets that a role may use, by Landlock (landlock(7)).

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Files, Role};

/// What this program knows of: Linux 6.12.
const KNOWN: ABI = ABI::V6;

/// Lets the role use the machine's directory, what it reads of the kernel, and its device nodes. Returns what is in force.
///
/// dom0 opens images anywhere, and finds out who else has them open, which Landlock would not let it see: it is left out until another
/// process opens images for it.
pub(super) fn restrict(role: Role, dir: &Path) -> Result<Files, RulesetError> {
    if role == Role::Dom0 {
        return Ok(Files::Any);
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
    let mut ruleset = allow(ruleset, dir, all & !AccessFs::Execute)?;
    for path in ["/proc", "/sys"] {
        ruleset = allow(ruleset, Path::new(path), read)?;
    }
    for path in ["/dev/null", "/dev/urandom"] {
        ruleset = allow(ruleset, Path::new(path), device)?;
    }
    if role == Role::Guest {
        for path in ["/dev/net/tun", "/dev/xen"] {
            ruleset = allow(ruleset, Path::new(path), device)?;
        }
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
