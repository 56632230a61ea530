// Not a core: does I/O or calls a hypervisor.

//! Settings of network interfaces, with errors that name the interface and the missing permission or object.
#![allow(unsafe_code)] // interface ioctls take a C union

use std::os::fd::AsRawFd;

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
use super::net_error::check_name;
pub use super::{
    net_error::NetError,
    rtnetlink::{Link, link, set_alias, set_tx_queue_len},
};
use ioctl::{add_to_bridge, get_flags, get_mtu, set_flags, set_mac_of, set_mtu_of};

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
    check_name(name)?;
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
