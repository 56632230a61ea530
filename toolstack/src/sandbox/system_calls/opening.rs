//! What the process that opens images does not do, beyond what no process of a machine does: it opens files that exist, and passes them
//! on. It creates, removes, renames and changes none, and uses no socket but the one it was started with.

use libc::c_long;
use seccompiler::{Error, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};

use super::{Rules, rule};

/// Refused whatever their arguments.
const REFUSED: &[c_long] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_memfd_create,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_vmsplice,
    libc::SYS_tee,
    libc::SYS_copy_file_range,
];

/// The same calls as processors have them that Linux has run on for longer.
#[cfg(target_arch = "x86_64")]
const REFUSED_OLD: &[c_long] = &[
    libc::SYS_creat,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_OLD: &[c_long] = &[];

/// `__O_TMPFILE` (asm-generic/fcntl.h): a file without a name.
const TMPFILE: u64 = 0o20_000_000;
/// The highest descriptor of what a process is started with: standard error, where it logs.
const STDERR: u64 = 2;

pub(super) fn refused() -> Result<Rules, Error> {
    let mut rules: Rules = REFUSED.iter().chain(REFUSED_OLD).map(|call| (*call, Vec::new())).collect();
    let has = |argument: u8, bits: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits), bits)
    };
    let creates = |argument: u8| {
        let bits = [libc::O_CREAT as u64, libc::O_TRUNC as u64, TMPFILE];
        bits.into_iter().map(|bits| rule(vec![has(argument, bits)?])).collect::<Result<Vec<_>, Error>>()
    };
    rules.insert(libc::SYS_openat, creates(2)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, creates(1)?);
    for call in [libc::SYS_write, libc::SYS_writev] {
        let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Gt, STDERR)?;
        rules.insert(call, vec![rule(vec![other])?]);
    }
    // A file that is mapped as shared is written to without a call.
    rules.insert(libc::SYS_mmap, vec![rule(vec![has(3, libc::MAP_SHARED as u64)?])?]);
    Ok(rules)
}
