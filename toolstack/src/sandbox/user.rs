//! Becomes another user than root, who starts the processes of guests with `uid=`: what other users' processes hold is then out of
//! reach of one that was taken over, and its own domain is the only one that the broker lets it be.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getppid, setgroups, setresgid, setresuid};

use crate::error::{Error, Result};

/// The group of processes that are to have none: `nogroup` of Debian, the kernel's overflow group.
const NO_GROUP: Gid = Gid::from_raw(65_534);

/// Becomes this user, for good, with no group. Of root's capabilities it keeps what taps need: CAP_NET_ADMIN, CAP_IPC_LOCK, and, if it
/// `enters_netns`, CAP_SYS_ADMIN; and CAP_SETPCAP, with which the sandbox drops the others from the bounding set, and then itself.
///
/// # Errors
/// [`Error::Io`] if this process is not root, or its parent has ended, with which it was to end.
pub fn become_user(uid: u32, enters_netns: bool) -> Result<()> {
    let failed = |e: nix::Error| Error::io(format!("becoming user {uid}"), e);
    let uid = Uid::from_raw(uid);
    let parent = getppid();
    let dies_with_parent = prctl::get_pdeathsig().map_err(failed)?;
    prctl::set_keepcaps(true).map_err(failed)?;
    setgroups(&[]).map_err(failed)?;
    setresgid(NO_GROUP, NO_GROUP, NO_GROUP).map_err(failed)?;
    setresuid(uid, uid, uid).map_err(failed)?;
    prctl::set_keepcaps(false).map_err(failed)?;
    keep(enters_netns).map_err(|e| Error::Other(format!("becoming user {uid}: capabilities: {e}")))?;
    // The kernel forgets it where the user changes.
    prctl::set_pdeathsig(dies_with_parent).map_err(failed)?;
    match dies_with_parent.is_some() && getppid() != parent {
        true => Err(Error::other("the process that started this one is gone")),
        false => Ok(()),
    }
}

fn keep(enters_netns: bool) -> Result<(), caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let wanted = [Capability::CAP_NET_ADMIN, Capability::CAP_IPC_LOCK, Capability::CAP_SETPCAP];
    let wanted = wanted.into_iter().chain(enters_netns.then_some(Capability::CAP_SYS_ADMIN));
    let kept: CapsHashSet = wanted.filter(|capability| permitted.contains(capability)).collect();
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::set(None, CapSet::Effective, &kept)
}
