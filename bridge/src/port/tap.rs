// Not a core: does I/O or calls a hypervisor.

//! A tap: a network interface of this machine whose other end is a port of a switch.
//!
//! No crate fits: those that support `virtio_net_hdr` (tun-rs) are for tunnels of IP packets, and segment and coalesce
//! packets in their own buffers, while a switch passes the header on and writes from guests' pages. The code needs only
//! four ioctls.
#![allow(unsafe_code)] // the ioctls of linux/if_tun.h

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use super::{
    netdev::{self, NetError},
    vnet_fd::{VnetFd, readv},
};
use crate::{Batch, Caps, Frames, Interest, Port, Stats};

const TUN: &str = "/dev/net/tun";
/// `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6`: the offloads that frames read from the tap may have.
const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
/// Frames that wait in the kernel until they are read from the tap, which drops further ones: a burst of a program that is
/// not slowed down must fit while the port is not read.
const TX_QUEUE_LEN: u32 = 2048;
/// The lengths with which kernels make a tap. Others were chosen by an administrator.
const TX_QUEUE_LEN_DEFAULTS: [u32; 2] = [500, 1000];
/// Longest payload of a frame that a tap takes: an IP packet's length, less an Ethernet header.
const MTU_MAX: u32 = 65_535 - 14;

/// The requests of linux/if_tun.h.
#[allow(missing_docs)] // nix's macros make public functions
mod ioctl {
    nix::ioctl_write_ptr_bad!(
        tun_set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int!(tun_set_persist, b'T', 203);
    nix::ioctl_write_int!(tun_set_offload, b'T', 208);
}

/// The port of a tap interface. The interface is removed when this is dropped, unless it was made persistent.
pub struct Tap {
    kernel: VnetFd,
    name: String,
}

/// The persistence of a tap that outlives the program, with its Linux bridge, its addresses and other settings.
#[derive(Debug)]
pub struct Persistence(OwnedFd);

impl Persistence {
    /// Ends the persistence: the interface is removed with its last port.
    pub fn end(self) -> Result<(), NetError> {
        persist(&self.0, false)
    }
}

impl Tap {
    /// Makes the tap interface `name`, or takes it if it exists (made by `ip tuntap add`) and is free. A name
    /// with `%d` in it gets a number. It belongs to the network namespace of the calling thread, and is down
    /// until it is set up ([`netdev::set_up`]).
    pub fn open(name: &str) -> Result<Tap, NetError> {
        Tap::attach(name, false)
    }

    /// Makes the tap interface `name` as [`Tap::open`] does, and never takes one that exists.
    ///
    /// # Errors
    /// [`NetError::Exists`] where there is an interface of that name, a tap or not.
    pub fn create(name: &str) -> Result<Tap, NetError> {
        Tap::attach(name, true)
    }

    fn attach(name: &str, is_new: bool) -> Result<Tap, NetError> {
        let mut request = netdev::request(name)?;
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = open(TUN, flags, Mode::empty())
            .map_err(|errno| NetError::NoTun { path: TUN, error: errno.into() })?;
        let exclusive = if is_new { libc::IFF_TUN_EXCL } else { 0 };
        let kind = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = (kind | exclusive) as i16;
        // SAFETY: the request is a whole `ifreq`; the kernel writes the interface's name back into it.
        unsafe { ioctl::tun_set_iff(fd.as_raw_fd(), &raw mut request) }.map_err(|errno| match errno {
            Errno::EBUSY if is_new => NetError::Exists(name.into()),
            Errno::EBUSY | Errno::EINVAL if !is_new => NetError::Busy(name.into()),
            errno => NetError::new(format!("make tap {name:?}"), "NET_ADMIN", errno),
        })?;
        // SAFETY: takes a number, no pointer.
        unsafe { ioctl::tun_set_offload(fd.as_raw_fd(), OFFLOADS) }
            .map_err(|errno| NetError::new(format!("set offloads of tap {name:?}"), "NET_ADMIN", errno))?;
        let name = given_name(&request);
        if TX_QUEUE_LEN_DEFAULTS.contains(&netdev::link(&name)?.tx_queue_len) {
            netdev::set_tx_queue_len(&name, TX_QUEUE_LEN)?;
        }
        let what = format!("get buffers for tap {name:?}");
        let kernel = VnetFd::new(fd).map_err(|error| NetError::Os { what, error })?;
        Ok(Tap { kernel, name })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the interface's mtu.
    pub fn set_mtu(&mut self, mtu: u32) -> Result<(), NetError> {
        netdev::set_mtu(&self.name, mtu)
    }

    /// Makes the interface outlive this process, however that ends.
    pub fn persist(&self) -> Result<Persistence, NetError> {
        let fd = self.kernel.fd.try_clone();
        let fd = fd.map_err(|error| NetError::Os { what: format!("keep tap {:?}", self.name), error })?;
        persist(&fd, true)?;
        Ok(Persistence(fd))
    }
}

impl Port for Tap {
    /// All offloads: the kernel does in software what it must. The interface's mtu, which other programs may change,
    /// bounds the frames read from the tap; frames written to it are bounded where they leave the machine.
    fn caps(&self) -> Caps {
        Caps::full(MTU_MAX)
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.kernel.stats
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        self.kernel.recv(into, None, readv)
    }

    fn recv_for(&mut self, to: &mut dyn Port, into: &mut Batch) -> io::Result<()> {
        self.kernel.recv(into, Some(to), readv)
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        self.kernel.send(frames)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The descriptor is always readable while there is a frame, and frames without room are dropped.
    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        Ok(false)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.kernel.fd.as_fd()
    }
}

fn persist(fd: &OwnedFd, lasting: bool) -> Result<(), NetError> {
    // SAFETY: takes a number, no pointer.
    unsafe { ioctl::tun_set_persist(fd.as_raw_fd(), lasting.into()) }
        .map_err(|errno| NetError::new("make a tap last", "NET_ADMIN", errno))?;
    Ok(())
}

fn given_name(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}
