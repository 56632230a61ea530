//! Prints the processor time of every domain of a real Xen host in nanoseconds: `DOMID NS` a line, then `idle NS` of
//! all processors. Time that Xen spends on behalf of a domain counts as the domain's.
//!
//! `xl list` prints the same in tenths of a second. Under QEMU with `-icount` the unit is instructions.
#![allow(unsafe_code)] // a hypercall that is given addresses of this process

use nix::libc;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `__HYPERVISOR_sysctl` (xen.h:109).
const SYSCTL: u64 = 35;
/// `XEN_SYSCTL_INTERFACE_VERSION` of Xen 4.17 (sysctl.h:21); other versions of Xen reject it.
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

/// `struct xen_sysctl`, with the members of its union that are used: `getdomaininfolist` has `first_domain`,
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
    /// `first_domain`, or `max_cpus` of the other operation.
    first: u32,
    max: u32,
    buffer: u64,
    found: u32,
    pad: u32,
}

/// `struct xen_domctl_getdomaininfo` (domctl.h:99) as 64-bit words: `domain` is the lowest 16 bits of the first.
type Info = [u64; 14];
/// The index of the word `cpu_time`.
const CPU_TIME: usize = 7;

const MAX_DOMAINS: usize = 64;
const MAX_CPUS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let privcmd = File::options().read(true).write(true).open("/dev/xen/privcmd")?;
    let mut infos = [Info::default(); MAX_DOMAINS];
    let list = List { max: MAX_DOMAINS as u32, buffer: infos.as_mut_ptr() as u64, ..List::default() };
    // SAFETY: `buffer` has space for `max` domains.
    let found = unsafe { sysctl(&privcmd, DOMAINS, list) }?;
    let mut idle = [0u64; MAX_CPUS];
    let list = List { first: MAX_CPUS as u32, buffer: idle.as_mut_ptr() as u64, ..List::default() };
    // SAFETY: `buffer` has space for `first` numbers, which is `max_cpus` here.
    let cpus = unsafe { sysctl(&privcmd, CPUS, list) }?;
    for info in &infos[..found] {
        println!("{} {}", info[0] & 0xffff, info[CPU_TIME]);
    }
    println!("idle {}", idle[..cpus].iter().sum::<u64>());
    Ok(())
}

/// Makes the hypercall, which fills the list's buffer; returns the number of entries.
///
/// # Safety
/// The list's buffer has space for as many entries as the list says.
unsafe fn sysctl(privcmd: &File, cmd: u32, list: List) -> io::Result<usize> {
    let mut operation = Sysctl { cmd, version: VERSION, list, rest: [0; 13] };
    let mut call = Hypercall { op: SYSCTL, arg: [&raw mut operation as u64, 0, 0, 0, 0] };
    // SAFETY: `call` is the structure that the ioctl takes, and its argument the one that the hypercall takes; the
    // caller guarantees the buffer's size.
    match unsafe { libc::ioctl(privcmd.as_raw_fd(), HYPERCALL, &raw mut call) } {
        0 => Ok(operation.list.found as usize),
        _ => Err(io::Error::last_os_error()),
    }
}
