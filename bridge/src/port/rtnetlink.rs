// Not a core: does I/O or calls a hypervisor.

//! What the kernel knows of a network interface, asked over rtnetlink(7).
//!
//! /sys/class/net says the same, but of the network namespace that sysfs was mounted in; a netlink socket speaks
//! of the calling thread's. Two kinds of message are needed, so that no crate is.

use std::os::fd::AsRawFd;

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use super::net_error::{NetError, check_name};

/// Longest alias in bytes: `IFALIASZ` (linux/if.h) less its NUL.
const ALIAS_MAX: usize = 255;
/// `IFLA_TUN_PERSIST` (linux/if_link.h), among the `IFLA_INFO_DATA` of a tun or tap.
const IFLA_TUN_PERSIST: u16 = 6;
/// Bytes of `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER: usize = 16;
const IFINFOMSG: usize = 16;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its alias, a text for administrators and programs: `ip link set NAME alias TEXT`.
    pub alias: Option<String>,
    /// The index of the bridge or bond that it is in.
    pub master: Option<u32>,
    /// What kind of virtual interface it is, as `ip -d link` prints it: `tun` for taps too, `bridge`, `veth`...
    pub kind: Option<String>,
    /// It is a tun or tap that outlives the programs that use it.
    pub persistent: bool,
    /// Most frames that wait to be sent by it.
    pub tx_queue_len: u32,
}

/// Interface `name`, in the network namespace of the calling thread.
///
/// # Errors
/// [`NetError::NoInterface`] where there is none.
pub fn link(name: &str) -> Result<Link, NetError> {
    check_name(name)?;
    let answer = ask(libc::RTM_GETLINK, 0, &[(libc::IFLA_IFNAME, name.as_bytes())])
        .map_err(|errno| failed(name, "query", errno))?;
    Ok(parse(answer.get(IFINFOMSG..).unwrap_or_default()))
}

/// Sets the alias of interface `name`.
///
/// # Errors
/// [`NetError::NoInterface`]; [`NetError::NoPermission`]; [`NetError::Os`] with ERANGE for a text above 255 bytes.
pub fn set_alias(name: &str, alias: &str) -> Result<(), NetError> {
    check_name(name)?;
    let attributes = [(libc::IFLA_IFNAME, name.as_bytes()), (libc::IFLA_IFALIAS, alias.as_bytes())];
    let done = match alias.len() {
        0..=ALIAS_MAX => ask(libc::RTM_SETLINK, libc::NLM_F_ACK, &attributes),
        _ => Err(Errno::ERANGE),
    };
    done.map(drop).map_err(|errno| failed(name, "set the alias of", errno))
}

/// Sets the length of the transmit queue of interface `name`, in frames. (SIOCSIFTXQLEN needs the permission in the initial
/// user namespace.)
///
/// # Errors
/// [`NetError::NoInterface`]; [`NetError::NoPermission`].
pub fn set_tx_queue_len(name: &str, frames: u32) -> Result<(), NetError> {
    check_name(name)?;
    let attributes = [(libc::IFLA_IFNAME, name.as_bytes()), (libc::IFLA_TXQLEN, &frames.to_ne_bytes()[..])];
    let done = ask(libc::RTM_SETLINK, libc::NLM_F_ACK, &attributes);
    done.map(drop).map_err(|errno| failed(name, "set the queue length of", errno))
}

fn failed(name: &str, what: &str, errno: Errno) -> NetError {
    match errno {
        Errno::ENODEV => NetError::NoInterface(name.into()),
        errno => NetError::new(format!("{what} network interface {name:?}"), "NET_ADMIN", errno),
    }
}

/// Sends one request; the payload of the answer, empty for an acknowledgement.
fn ask(kind: u16, flags: libc::c_int, attributes: &[(u16, &[u8])]) -> nix::Result<Vec<u8>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::NetlinkRoute),
    )?;
    send(socket.as_raw_fd(), &request(kind, libc::NLM_F_REQUEST | flags, attributes), MsgFlags::empty())?;
    let mut answer = vec![0; 1 << 16];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let (Some(kind), Some(payload)) = (u16_at(&answer, 4), answer.get(HEADER..len)) else {
        return Err(Errno::EBADMSG);
    };
    match libc::c_int::from(kind) {
        libc::NLMSG_ERROR => match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
            Some(0) => Ok(Vec::new()),
            Some(code) => Err(Errno::from_raw(-code)),
            None => Err(Errno::EBADMSG),
        },
        _ => Ok(payload.to_vec()),
    }
}

/// A message about an interface that its attributes name.
fn request(kind: u16, flags: libc::c_int, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; HEADER + IFINFOMSG];
    for (kind, value) in attributes {
        message.extend((value.len() as u16 + 4).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    message
}

fn parse(attributes: &[u8]) -> Link {
    let mut link = Link::default();
    for (kind, value) in Attributes(attributes) {
        match kind {
            libc::IFLA_IFALIAS => link.alias = Some(text(value)),
            libc::IFLA_MASTER => link.master = u32_of(value),
            libc::IFLA_TXQLEN => link.tx_queue_len = u32_of(value).unwrap_or(0),
            libc::IFLA_LINKINFO => link_info(&mut link, value),
            _ => {}
        }
    }
    link
}

fn link_info(link: &mut Link, info: &[u8]) {
    let data = |value| Attributes(value).any(|(kind, value)| kind == IFLA_TUN_PERSIST && value == [1]);
    for (kind, value) in Attributes(info) {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = Some(text(value)),
            // The kind comes first: attributes of other kinds have other meanings.
            libc::IFLA_INFO_DATA if link.kind.as_deref() == Some("tun") => link.persistent = data(value),
            _ => {}
        }
    }
}

fn u32_of(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// The attributes of a message (`struct rtattr`): kind and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let len = usize::from(u16_at(self.0, 0)?);
        let value = self.0.get(4..len)?;
        // The upper two bits say that attributes are nested, or the byte order.
        let kind = u16_at(self.0, 2)? & 0x3fff;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_its_name_alone() {
        assert_eq!(link("lo").unwrap().kind, None);
        assert!(matches!(link("no-such-if"), Err(NetError::NoInterface(name)) if name == "no-such-if"));
        assert!(matches!(link("a/b"), Err(NetError::BadName(_))));
        assert!(matches!(
            set_alias("no-such-if", "x"),
            Err(NetError::NoInterface(_) | NetError::NoPermission(..))
        ));
    }

    #[test]
    fn a_message_cut_short_ends_the_attributes() {
        let message =
            request(0, 0, &[(libc::IFLA_IFALIAS, b"abc\0"), (libc::IFLA_MASTER, &7u32.to_ne_bytes())]);
        let attributes = &message[HEADER + IFINFOMSG..];
        let whole = Link { alias: Some("abc".into()), master: Some(7), ..Link::default() };
        assert_eq!(parse(attributes), whole);
        for len in 0..attributes.len() {
            let cut = parse(&attributes[..len]);
            assert!(cut.master.is_none() && (len >= 8) == cut.alias.is_some(), "{len}: {cut:?}");
        }
        assert_eq!(parse(&[0; 64]), Link::default(), "a length below its own header's");
    }
}
