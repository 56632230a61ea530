//! The system calls that no process of a machine makes, refused by seccomp (seccomp(2)): those that start programs, look into other
//! processes, mount, load code into the kernel, make namespaces, or use sockets of families that xpv has nothing to do with. What a role does
//! with devices it does by ioctls that are listed (`ioctls.rs`), and the process that opens images does nothing else with files (`opening.rs`).

mod ioctls;
mod opening;

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Role;

/// Refused with EPERM to all roles.
const REFUSED: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_perf_event_open,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_unshare,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_fanotify_init,
    libc::SYS_vhangup,
];

/// Flags of clone(2) that make namespaces.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32 as u64;

/// Families of sockets that are used: local ones, taps' and vifs' ioctls (INET), netlink and packet sockets.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_NETLINK, libc::AF_PACKET];

/// Refuses the system calls, to all threads.
pub(super) fn restrict(role: Role) -> Result<(), Error> {
    let mut rules = refused(role)?;
    rules.extend(ioctls::refused(role)?);
    if matches!(role, Role::Dom0 | Role::Opener) {
        rules.extend(signals_to_others()?);
    }
    if role == Role::Opener {
        rules.extend(opening::refused()?);
    }
    // Each filter costs every call with rules: those of one errno are one.
    for filter in [filter(rules, libc::EPERM)?, absent()?] {
        seccompiler::apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

/// Refuses to connect sockets, to all threads.
pub(super) fn refuse_connecting() -> Result<(), Error> {
    let filter = filter(BTreeMap::from([(libc::SYS_connect, Vec::new())]), libc::EPERM)?;
    seccompiler::apply_filter_all_threads(&filter)
}

/// Calls, each refused with one of these arguments, or always if there are none.
type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn refused(role: Role) -> Result<Rules, Error> {
    let mut rules: Rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    if role != Role::Guest {
        // A guest's taps are in a network namespace of its own.
        rules.insert(libc::SYS_setns, Vec::new());
    }
    let any_of = |bits: u64| SeccompCmpOp::MaskedEq(bits);
    let namespaces: Vec<SeccompRule> = (0..64)
        .map(|bit| 1u64 << bit)
        .filter(|bit| NEW_NAMESPACES & bit != 0)
        .map(|bit| rule(vec![SeccompCondition::new(0, SeccompCmpArgLen::Qword, any_of(bit), bit)?]))
        .collect::<Result<_, Error>>()?;
    rules.insert(libc::SYS_clone, namespaces);
    let other_family = FAMILIES
        .iter()
        .map(|family| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *family as u64))
        .collect::<Result<Vec<_>, _>>()?;
    // Of INET only datagram sockets: no program of these connects anywhere.
    let inet = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_INET as u64)?;
    let kind = SeccompCondition::new(
        1,
        SeccompCmpArgLen::Dword,
        // The low four bits are the type (SOCK_TYPE_MASK of linux/net.h).
        SeccompCmpOp::MaskedEq(0xf),
        libc::SOCK_STREAM as u64,
    )?;
    rules.insert(libc::SYS_socket, vec![rule(other_family)?, rule(vec![inet, kind])?]);
    Ok(rules)
}

/// The flags of clone3(2) and openat2(2) are in memory, where a filter cannot see them. Where they do not exist, libc uses clone(2) and
/// openat(2).
fn absent() -> Result<BpfProgram, Error> {
    filter([libc::SYS_clone3, libc::SYS_openat2].map(|call| (call, Vec::new())).into(), libc::ENOSYS)
}

/// Signals, but for one to a thread of this process: abort(3) sends that.
fn signals_to_others() -> Result<Rules, Error> {
    let own = u64::from(std::process::id());
    let others = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, own)?;
    let calls = [
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_pidfd_send_signal,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
    ];
    let mut rules: Rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_tgkill, vec![rule(vec![others])?]);
    Ok(rules)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(conditions)?)
}

fn filter(rules: Rules, errno: i32) -> Result<BpfProgram, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(errno as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()?)
}
