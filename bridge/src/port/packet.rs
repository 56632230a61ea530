// Not a core: does I/O or calls a hypervisor.

//! A packet socket: joins an existing interface (a network card, one end of a veth) to a switch.
//!
//! The port receives all frames that the interface receives (it is made promiscuous), and sends by the interface. The
//! host's network stack does not receive frames that the port sends, nor the port those that the stack sends.
//!
//! UDP that a local program had segmented by the kernel (`UDP_SEGMENT`, as some QUIC programs do) arrives
//! unsegmented from a veth, and the bridge cuts it for the ports that it goes to.
#![allow(unsafe_code)] // `recvmsg` with an auxiliary message, and options that no crate wraps

use std::{
    io,
    mem::{size_of, size_of_val, zeroed},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::{from_mut, from_ref},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt},
};

use super::{
    netdev::{self, NetError},
    vnet_fd::{Received, VnetFd},
};
use crate::{Batch, Caps, Frames, Interest, Port, Stats};

/// `PACKET_VNET_HDR` and `PACKET_IGNORE_OUTGOING` of linux/if_packet.h.
const PACKET_VNET_HDR: i32 = 15;
const PACKET_IGNORE_OUTGOING: i32 = 23;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const DOT1Q: u16 = 0x8100;
/// Bytes of the socket's buffers, of which the kernel counts some 2,300 for a frame of 1,514 bytes: a burst of 2,000 fits, where
/// the usual 208 KiB hold 90.
const BUFFERS: usize = 8 << 20;

/// A port that receives and sends by an existing interface.
pub struct Packet {
    io: VnetFd,
    mtu: u32,
}

impl Packet {
    /// Opens a packet socket on interface `name` of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetError::BadName`], [`NetError::NoInterface`], [`NetError::NoPermission`] without CAP_NET_RAW.
    pub fn open(name: &str) -> Result<Packet, NetError> {
        netdev::request(name)?;
        let ifindex = netdev::index(name)?;
        let what = format!("open a packet socket on {name:?}");
        let fail = |errno| NetError::new(what.clone(), "NET_RAW", errno);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None).map_err(fail)?;
        for option in [PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, libc::PACKET_AUXDATA] {
            set(&fd, option, &1i32).map_err(fail)?;
        }
        enlarge_buffers(&fd);
        // SAFETY: all zeroes is a valid request: a C struct of integers.
        let mut promiscuous: libc::packet_mreq = unsafe { zeroed() };
        promiscuous.mr_ifindex = ifindex;
        promiscuous.mr_type = libc::PACKET_MR_PROMISC as u16;
        set(&fd, libc::PACKET_ADD_MEMBERSHIP, &promiscuous).map_err(fail)?;
        // Bound last, so that no frame is received before the options are set.
        bind(&fd, ifindex).map_err(fail)?;
        let mtu = netdev::mtu(name)?;
        let io = VnetFd::new(fd).map_err(|error| NetError::Os { what: what.clone(), error })?;
        Ok(Packet { io, mtu })
    }
}

impl Port for Packet {
    /// All offloads: the kernel does in software what the card cannot. The mtu is the interface's when it was opened.
    fn caps(&self) -> Caps {
        Caps::full(self.mtu)
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.io.stats
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        self.io.recv(into, None, receive)
    }

    fn recv_for(&mut self, to: &mut dyn Port, into: &mut Batch) -> io::Result<()> {
        self.io.recv(into, Some(to), receive)
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        self.io.send(frames)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The descriptor is always readable while there is a frame, and frames without room are dropped.
    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        Ok(false)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.io.fd.as_fd()
    }
}

/// Enlarges both buffers: without CAP_NET_ADMIN as far as the host's limits (net.core) allow, which is no error.
fn enlarge_buffers(fd: &OwnedFd) {
    if setsockopt(fd, sockopt::RcvBufForce, &BUFFERS).is_err() {
        let _ = setsockopt(fd, sockopt::RcvBuf, &BUFFERS);
    }
    if setsockopt(fd, sockopt::SndBufForce, &BUFFERS).is_err() {
        let _ = setsockopt(fd, sockopt::SndBuf, &BUFFERS);
    }
}

fn set<T>(fd: &OwnedFd, option: i32, value: &T) -> nix::Result<()> {
    let value = from_ref(value).cast();
    let len = size_of::<T>() as u32;
    // SAFETY: the kernel reads `len` bytes of the value.
    Errno::result(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, option, value, len) }).map(drop)
}

fn bind(fd: &OwnedFd, ifindex: i32) -> nix::Result<()> {
    // SAFETY: all zeroes is a valid address: a C struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = ifindex;
    let start = from_ref(&address).cast();
    let len = size_of_val(&address) as u32;
    // SAFETY: the kernel reads `len` bytes of the address.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), start, len) }).map(drop)
}

/// The buffer for one `PACKET_AUXDATA` message, with the alignment of its header.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// `recvmsg`, with the VLAN tag that the kernel removes from the frame and reports in an auxiliary message.
fn receive(fd: &OwnedFd, iovecs: &mut [libc::iovec]) -> io::Result<Received> {
    let mut control = Control([0; 64]);
    // SAFETY: all zeroes is a valid message: null pointers and lengths of zero.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    message.msg_control = from_mut(&mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: the caller's entries refer to memory that it may write; `control` has the length given.
    let bytes = Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, 0) })? as usize;
    Ok(Received { bytes, tag: tag(&message) })
}

fn tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the kernel has filled `msg_control` and set its length, within which CMSG_FIRSTHDR stays.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    let wanted = (libc::SOL_PACKET, libc::PACKET_AUXDATA);
    let size = size_of::<libc::cmsghdr>() + size_of::<libc::tpacket_auxdata>();
    if (header.cmsg_level, header.cmsg_type) != wanted || header.cmsg_len < size {
        return None;
    }
    // SAFETY: a message of this type and length holds such a struct, at any alignment.
    let aux: libc::tpacket_auxdata =
        unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
    if aux.tp_status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if aux.tp_status & TP_STATUS_VLAN_TPID_VALID != 0 { aux.tp_vlan_tpid } else { DOT1Q };
    let [a, b] = tpid.to_be_bytes();
    let [c, d] = aux.tp_vlan_tci.to_be_bytes();
    Some([a, b, c, d])
}
