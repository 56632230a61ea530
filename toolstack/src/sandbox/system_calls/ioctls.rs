//! The ioctls of each role: all others are refused, on whatever descriptor.

use seccompiler::{Error, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};

use super::{Role, Rules, rule};

/// What the standard library does with any descriptor, and whether it is a terminal.
const COMMON: [u64; 6] =
    [libc::FIONBIO, libc::FIOCLEX, libc::FIONCLEX, libc::FIONREAD, libc::TCGETS, libc::TCGETS2];

/// Of taps and interfaces (linux/if_tun.h, linux/sockios.h): TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD, SIOCGIFNAME, SIOCGIFINDEX,
/// SIOCBRADDIF, and an interface's flags, MTU and address.
const INTERFACES: [u64; 11] = [
    0x4004_54ca,
    0x4004_54cb,
    0x4004_54d0,
    libc::SIOCGIFNAME,
    libc::SIOCGIFINDEX,
    0x89a2,
    libc::SIOCGIFFLAGS,
    libc::SIOCSIFFLAGS,
    libc::SIOCGIFMTU,
    libc::SIOCSIFMTU,
    libc::SIOCSIFHWADDR,
];

/// Of block devices that are images (linux/fs.h): BLKDISCARD.
const DISCARD: [u64; 1] = [0x1277];

/// Refuses all ioctls but those of a role.
pub(super) fn refused(role: Role) -> Result<Rules, Error> {
    let of_devices: &[u64] = match role {
        Role::Dom0 | Role::Guest => &INTERFACES,
        Role::Hypervisor | Role::Opener => &[],
    };
    let of_xen: &[u64] = match role {
        Role::Dom0 | Role::Guest => &hypervisor::xen::IOCTLS,
        Role::Hypervisor | Role::Opener => &[],
    };
    let of_images: &[u64] = if role == Role::Dom0 { &DISCARD } else { &[] };
    // The filter compares them in this order, and a backend on Xen calls the first ones for every batch.
    let allowed = of_xen.iter().chain(of_devices).chain(of_images).chain(&COMMON);
    // The kernel takes the number as 32 bits.
    let is_another = |ioctl: &u64| {
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *ioctl & u64::from(u32::MAX))
    };
    let others = allowed.map(is_another).collect::<Result<Vec<_>, _>>()?;
    Ok([(libc::SYS_ioctl, vec![rule(others)?])].into())
}
