//! Processor time of every domain of a real Xen host, in nanoseconds: `DOMID NS` a line, then `idle NS` of all
//! processors. Xen's own time on a domain's behalf is the domain's.
//!
//! `xl list` says the same in tenths of a second. Where QEMU's clock counts instructions, these are instructions.
#![allow(unsafe_code)] // A hypercall, with addresses of our own memory.

use nix::libc;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `__HYPERVISOR_sysctl` (xen.h:109).
const SYSCTL: u64 = 35;
/// `XEN_SYSCTL_INTERFACE_VERSION` of Xen 4.17 (sysctl.h:21); another Xen refuses it.
const VERSION: u32 = 0x15;
/// `XEN_SYSCTL_getdomaininfolist` (sysctl.h:1062).
const DOMAINS: u32 = 6;
/// `XEN_SYSCTL_getcpuinfo` (sysctl.h:1064).
const CPUS: u32 = 8;
/// `IOCTL_PRIVCMD_HYPERCALL`: `_IOC(_IOC_NONE, 'P', 0, 48)` (privcmd.h).
const HYPERCALL: libc::Ioctl = 48 << 16 | (b'P' as libc::Ioctl) << 8;

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    op: u64,
    arg: [u64; 5],
}

/// `struct xen_sysctl`, with the members of its union that are asked for: `getdomaininfolist` has `first_domain`,
/// `max_domains`, `buffer`, `num_domains`; `getcpuinfo` has `max_cpus`, `info`, `nr_cpus`.
#[repr(C)]
struct Sysctl {
    cmd: u32,
    version: u32,
    list: List,
    rest: [u64; 13],
}
const _: () = assert!(size_of::<Sysctl>() == 136);

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct List {
    /// `first_domain`; the other question has its `max_cpus` here.
    first: u32,
    most: u32,
    buffer: u64,
    found: u32,
    pad: u32,
}

/// `struct xen_domctl_getdomaininfo` (domctl.h:99) by words: `domain` is the lowest 16 bits of the first.
type Info = [u64; 14];
/// Which word is `cpu_time`.
const CPU_TIME: usize = 7;

const MOST_DOMAINS: usize = 64;
const MOST_CPUS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let privcmd = File::options().read(true).write(true).open("/dev/xen/privcmd")?;
    let mut infos = [Info::default(); MOST_DOMAINS];
    let list = List { most: MOST_DOMAINS as u32, buffer: infos.as_mut_ptr() as u64, ..List::default() };
    // SAFETY: `buffer` is room for `most` domains.
    let found = unsafe { ask(&privcmd, DOMAINS, list) }?;
    let mut idle = [0u64; MOST_CPUS];
    let list = List { first: MOST_CPUS as u32, buffer: idle.as_mut_ptr() as u64, ..List::default() };
    // SAFETY: `buffer` is room for `first`, which is `max_cpus` here, numbers.
    let cpus = unsafe { ask(&privcmd, CPUS, list) }?;
    for info in &infos[..found] {
        println!("{} {}", info[0] & 0xffff, info[CPU_TIME]);
    }
    println!("idle {}", idle[..cpus].iter().sum::<u64>());
    Ok(())
}

/// How many there are, their words being in the list's buffer.
///
/// # Safety
/// The list's buffer has the room that the list says it has.
unsafe fn ask(privcmd: &File, cmd: u32, list: List) -> io::Result<usize> {
    let mut order = Sysctl { cmd, version: VERSION, list, rest: [0; 13] };
    let mut call = Hypercall { op: SYSCTL, arg: [&raw mut order as u64, 0, 0, 0, 0] };
    // SAFETY: the structure that the number names, whose argument is what the hypercall wants; the caller vouches
    // for the buffer.
    match unsafe { libc::ioctl(privcmd.as_raw_fd(), HYPERCALL, &raw mut call) } {
        0 => Ok(order.list.found as usize),
        _ => Err(io::Error::last_os_error()),
    }
}
