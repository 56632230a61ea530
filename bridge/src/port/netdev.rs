// Not a core: does I/O or calls a hypervisor.

//! Settings of network interfaces, with errors that name the interface and the missing permission or object.
#![allow(unsafe_code)] // interface ioctls take a C union

use std::{io, os::fd::AsRawFd};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// The requests of linux/sockios.h. Each takes a whole `ifreq` with a name in it, and a socket of any kind.
#[allow(missing_docs)] // nix's macros make public functions
mod ioctl {
    const SIOCBRADDIF: libc::c_ulong = 0x89a2;

    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_read_bad!(get_mtu, libc::SIOCGIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mtu_of, libc::SIOCSIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mac_of, libc::SIOCSIFHWADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(add_to_bridge, SIOCBRADDIF, libc::ifreq);
}
pub use super::rtnetlink::{Link, link, set_alias};
use ioctl::{add_to_bridge, get_flags, get_mtu, set_flags, set_mac_of, set_mtu_of};

/// The errors of operations on interfaces. Their texts have the system's error, which is therefore not a `source` as
/// well.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Names have 1 to 15 bytes, none of them a slash, blank or colon.
    #[error("{0:?} is not a valid interface name: expected 1 to 15 bytes without '/', ':' or blanks")]
    BadName(String),
    /// No such interface, in this network namespace.
    #[error("there is no network interface {0:?} in this network namespace")]
    NoInterface(String),
    /// Not a bridge, or none at all.
    #[error(
        "there is no Linux bridge {0:?} in this network namespace; `ip link add {0} type bridge` makes one"
    )]
    NoBridge(String),
    /// The capability is missing.
    #[error("no permission to {0}: CAP_{1} is needed in this network namespace")]
    NoPermission(String, &'static str),
    /// The device node is not there, or may not be opened.
    #[error("cannot open {path}: {error} (taps need the kernel module tun)")]
    NoTun {
        /// Its path.
        path: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// A tap was to be created where an interface exists already.
    #[error("there is a network interface {0:?} already in this network namespace")]
    Exists(String),
    /// The interface exists and is in use by another program, or is no tap.
    #[error(
        "cannot take network interface {0:?} as a tap: another program has it, or it is not a tap with one queue"
    )]
    Busy(String),
    /// An interface can be in one bridge only.
    #[error(
        "network interface {0:?} is in a bridge or bond already; `ip link set {0} nomaster` takes it out"
    )]
    Enslaved(String),
    /// Another system call failed.
    #[error("cannot {what}: {error}")]
    Os {
        /// The operation.
        what: String,
        /// The system's error.
        error: io::Error,
    },
}

impl NetError {
    /// Makes the error of operation `what`, which needs this capability.
    pub(super) fn new(what: impl Into<String>, capability: &'static str, errno: Errno) -> NetError {
        match errno {
            Errno::EPERM | Errno::EACCES => NetError::NoPermission(what.into(), capability),
            _ => NetError::Os { what: what.into(), error: errno.into() },
        }
    }
}

/// The mtu of interface `name`: bytes of the longest payload of its frames.
pub fn mtu(name: &str) -> Result<u32, NetError> {
    let mut request = request(name)?;
    // SAFETY: the kernel writes the mtu into the request.
    ioctl(name, "get the mtu of", |fd| unsafe { get_mtu(fd, &mut request) })?;
    // SAFETY: SIOCGIFMTU writes this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_mtu }.max(0) as u32)
}

/// Sets the mtu of interface `name`.
pub fn set_mtu(name: &str, mtu: u32) -> Result<(), NetError> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = i32::try_from(mtu).unwrap_or(i32::MAX);
    // SAFETY: the kernel only reads the request.
    ioctl(name, &format!("set an mtu of {mtu} for"), |fd| unsafe { set_mtu_of(fd, &request) })
}

/// Sets the Ethernet address of interface `name`.
pub fn set_mac(name: &str, mac: [u8; 6]) -> Result<(), NetError> {
    let mut request = request(name)?;
    let mut data = [0; 14];
    for (to, byte) in data.iter_mut().zip(mac) {
        *to = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    // SAFETY: the kernel only reads the request.
    ioctl(name, "set the address of", |fd| unsafe { set_mac_of(fd, &request) })
}

/// Sets interface `name` up.
pub fn set_up(name: &str) -> Result<(), NetError> {
    let mut request = request(name)?;
    // SAFETY: the kernel writes the flags into the request.
    ioctl(name, "get the flags of", |fd| unsafe { get_flags(fd, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS has written this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
    // SAFETY: the kernel only reads the request.
    ioctl(name, "set up", |fd| unsafe { set_flags(fd, &request) })
}

/// Puts interface `name` into the Linux bridge `bridge`.
pub fn join_bridge(name: &str, bridge: &str) -> Result<(), NetError> {
    let ifindex = index(name)?;
    let mut request = request(bridge)?;
    request.ifr_ifru.ifru_ifindex = ifindex;
    let what = format!("put {name:?} into the bridge");
    // SAFETY: the kernel only reads the request.
    match call(|fd| unsafe { add_to_bridge(fd, &request) }) {
        Ok(_) => Ok(()),
        Err(Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EINVAL) => Err(NetError::NoBridge(bridge.into())),
        Err(Errno::EBUSY) => Err(NetError::Enslaved(name.into())),
        Err(errno) => Err(NetError::new(format!("{what} {bridge:?}"), "NET_ADMIN", errno)),
    }
}

/// The bridge or bond that interface `name` is in.
pub fn master(name: &str) -> Option<String> {
    let index = link(name).ok()?.master?;
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// The index of interface `name`.
pub(super) fn index(name: &str) -> Result<i32, NetError> {
    let index = nix::net::if_::if_nametoindex(name).map_err(|_| NetError::NoInterface(name.into()))?;
    Ok(index as i32)
}

/// Makes a request for interface `name`.
pub(super) fn request(name: &str) -> Result<libc::ifreq, NetError> {
    let bad = name.is_empty() || name.len() >= libc::IFNAMSIZ || matches!(name, "." | "..");
    if bad || name.bytes().any(|byte| matches!(byte, 0 | b'/' | b':') || byte.is_ascii_whitespace()) {
        return Err(NetError::BadName(name.into()));
    }
    // SAFETY: all zeroes is a valid request: a C struct of integers and bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    Ok(request)
}

fn ioctl(name: &str, what: &str, request: impl FnOnce(i32) -> nix::Result<i32>) -> Result<(), NetError> {
    match call(request) {
        Ok(_) => Ok(()),
        Err(Errno::ENODEV) => Err(NetError::NoInterface(name.into())),
        Err(errno) => Err(NetError::new(format!("{what} network interface {name:?}"), "NET_ADMIN", errno)),
    }
}

fn call(request: impl FnOnce(i32) -> nix::Result<i32>) -> nix::Result<i32> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    request(socket.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_and_unknown_interface_names_are_reported() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a b", ".."] {
            assert!(matches!(mtu(name), Err(NetError::BadName(bad)) if bad == name));
        }
        assert_eq!(
            mtu("no-such-if").unwrap_err().to_string(),
            r#"there is no network interface "no-such-if" in this network namespace"#,
        );
    }
}
