//! The cost of grant operations on real Xen: map, copy, and persistent mappings, in nanoseconds of dom0's clock.
//!
//! `tests/xen/run grant-costs` runs it where a nanosecond is an instruction, on one processor, so that the figures
//! count instructions in dom0 and Xen. The pages are dom0's, granted to itself; with `XPV_GUEST_GRANT` (DOMID/GREF)
//! that page of a guest, repeated. With `XPV_BLOCK_DEVICE` the disk is read too.
#![allow(unsafe_code)] // Passes addresses of memory to the kernel.

use event_channel::{EventChannels, WaitChannel};
use grant_table::{Access, CopyOp, CopyPtr, GrantTable, Mapping, Shared};
use hypervisor::xen::Xen;
use io_uring::{IoUring, opcode, types};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;
use vm_memory::{MmapRegion, ReadVolatile, VolatileMemory, VolatileSlice};

type Any<T> = Result<T, Box<dyn std::error::Error>>;

/// A direct blkif request has 1 to 11 pages; 8 are 32 KiB.
const PAGES: [usize; 4] = [1, 8, 11, 32];
/// Rounds before the measurement.
const WARM: usize = 20;
/// Rounds measured.
const ROUNDS: usize = 200;

fn main() -> Any<()> {
    let bench = Bench::new()?;
    let overhead = time(|| Ok(()))?;
    println!("{:<72} {:>5} {:>13}", "what", "pages", "instructions");
    for pages in PAGES {
        bench.map(pages, overhead)?;
        bench.copy(pages, overhead)?;
    }
    bench.small(overhead)?;
    bench.disk(overhead)?;
    bench.rings(overhead)?;
    bench.events(overhead)?;
    bench.wakeup(overhead)
}

/// The hypervisor, and granted pages.
struct Bench {
    xen: Xen,
    peer: DomId,
    refs: Vec<GrantRef>,
    /// Keeps this domain's own pages granted.
    _own: Option<Shared>,
    memory: MmapRegion,
}

impl Bench {
    fn new() -> Any<Bench> {
        let xen = Xen::open()?;
        let most = PAGES[PAGES.len() - 1];
        let memory = MmapRegion::new(most * PAGE_SIZE)?;
        // Touched, so that the pages are present.
        memory.get_slice(0, memory.size())?.copy_from(&vec![1u8; memory.size()][..]);
        if let Ok(named) = std::env::var("XPV_GUEST_GRANT") {
            let (domid, gref) = named.split_once('/').ok_or("XPV_GUEST_GRANT is DOMID/GREF")?;
            let refs = vec![GrantRef(gref.parse()?); most];
            return Ok(Bench { xen, peer: DomId(domid.parse()?), refs, _own: None, memory });
        }
        let own = xen.share(xen.domid(), most, Access::ReadWrite)?;
        let refs = own.refs().to_vec();
        Ok(Bench { peer: xen.domid(), xen, refs, _own: Some(own), memory })
    }

    fn map(&self, pages: usize, overhead: u64) -> Any<()> {
        for (name, access) in
            [("map, unmap: read-only", Access::ReadOnly), ("map, unmap: writable", Access::ReadWrite)]
        {
            report(name, pages, overhead, || self.mapped(pages, access).map(drop))?;
        }
        report("map, touch each page, unmap: read-only", pages, overhead, || {
            let mapping = self.mapped(pages, Access::ReadOnly)?;
            for page in 0..pages {
                let mut byte = [0u8];
                mapping.slice(page, 0, 1).ok_or("inside")?.copy_to(&mut byte[..]);
                black_box(byte);
            }
            Ok(())
        })
    }

    fn mapped(&self, pages: usize, access: Access) -> Any<Mapping> {
        Ok(self.xen.map(self.peer, &self.refs[..pages], access)?)
    }

    /// Whole pages, all in one call.
    fn copy(&self, pages: usize, overhead: u64) -> Any<()> {
        report("grant copy from the peer", pages, overhead, || self.copied(pages, PAGE_SIZE, true))?;
        report("grant copy to the peer", pages, overhead, || self.copied(pages, PAGE_SIZE, false))
    }

    fn copied(&self, pages: usize, len: usize, from: bool) -> Any<()> {
        let op = |page: usize| {
            let grant = CopyPtr::Grant { domid: self.peer, gref: self.refs[page], offset: 0 };
            let memory = CopyPtr::Memory(self.page(page)?.into());
            let (source, dest) = if from { (grant, memory) } else { (memory, grant) };
            Ok(CopyOp::new(source, dest, len as u16))
        };
        let mut ops = (0..pages).map(op).collect::<Any<Vec<_>>>()?;
        self.xen.copy(&mut ops)?;
        match ops.iter().find(|op| !op.status.is_okay()) {
            Some(op) => Err(format!("a copy ended with status {}", op.status).into()),
            None => Ok(()),
        }
    }

    fn page(&self, page: usize) -> Any<VolatileSlice<'_>> {
        Ok(self.memory.get_slice(page * PAGE_SIZE, PAGE_SIZE)?)
    }

    /// Network frames, copied by Xen or from a page that stays mapped.
    fn small(&self, overhead: u64) -> Any<()> {
        for bytes in [64, 1514] {
            let name = format!("grant copy of {bytes} bytes from the peer");
            report(&name, 1, overhead, || self.copied(1, bytes, true))?;
        }
        let mapping = self.mapped(1, Access::ReadOnly)?;
        let page = VolatileSlice::from(mapping.slice(0, 0, PAGE_SIZE).ok_or("inside")?);
        let into = self.page(0)?;
        report("memcpy from a page that stays mapped", 1, overhead, || {
            page.copy_to_volatile_slice(into);
            Ok(())
        })
    }

    /// Direct reads into local memory and into a granted page.
    fn disk(&self, overhead: u64) -> Any<()> {
        let Ok(path) = std::env::var("XPV_BLOCK_DEVICE") else { return Ok(()) };
        let mut disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        let own = self.page(0)?;
        report("direct read of 4 KiB into local memory", 1, overhead, || read(&mut disk, own))?;
        let mapping = self.mapped(1, Access::ReadWrite)?;
        let page = VolatileSlice::from(mapping.slice(0, 0, PAGE_SIZE).ok_or("inside")?);
        report("direct read of 4 KiB into a page that stays mapped", 1, overhead, || read(&mut disk, page))?;
        report("the same, mapped and unmapped each time", 1, overhead, || {
            let mapping = self.mapped(1, Access::ReadWrite)?;
            read(&mut disk, mapping.slice(0, 0, PAGE_SIZE).ok_or("inside")?.into())
        })?;
        report("the same, into local memory and copied to the peer", 1, overhead, || {
            read(&mut disk, own)?;
            self.copied(1, PAGE_SIZE, false)
        })
    }

    /// The same by io_uring: one read or 32 reads a call, all into the same page.
    fn rings(&self, overhead: u64) -> Any<()> {
        let Ok(path) = std::env::var("XPV_BLOCK_DEVICE") else { return Ok(()) };
        let disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        let mapping = self.mapped(1, Access::ReadWrite)?;
        let places = [
            ("local memory", self.page(0)?),
            ("a page that stays mapped", mapping.slice(0, 0, PAGE_SIZE).ok_or("inside")?.into()),
        ];
        for (name, page) in places {
            for registered in [false, true] {
                let how = if registered { ", registered" } else { "" };
                let Some(mut ring) = Ring::new(&disk, registered.then_some(page))? else {
                    println!("io_uring reads into {name}{how}: refused by the kernel");
                    continue;
                };
                for count in [1, 32] {
                    let what = format!("io_uring reads, {count} a call, into {name}{how}");
                    let all = time(|| ring.read(page, count))?.saturating_sub(overhead);
                    println!("{what:<72} {:>5} {:>13}", 1, all / count as u64);
                }
            }
        }
        Ok(())
    }

    /// Waking a sleeping thread by an event, and being woken by its event.
    fn wakeup(&self, overhead: u64) -> Any<()> {
        let unbound = self.xen.alloc_unbound(self.xen.domid())?;
        let bound = self.xen.bind_interdomain(self.xen.domid(), unbound.port())?;
        bound.take()?;
        let wait = |channel: &dyn WaitChannel| -> Any<()> {
            while !channel.take()? {
                let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(10_000u16))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..WARM + ROUNDS)
                    .try_for_each(|_| wait(&*unbound).and_then(|()| Ok(unbound.notify()?)))
                    .is_ok()
            });
            report("an event wakes a thread, whose event wakes the sender", 0, overhead, || {
                bound.notify()?;
                wait(&*bound)
            })
        })?;
        report("poll of one descriptor that is not ready", 0, overhead, || {
            let mut fds = [PollFd::new(unbound.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO)?;
            Ok(())
        })
    }

    fn events(&self, overhead: u64) -> Any<()> {
        let unbound = self.xen.alloc_unbound(self.xen.domid())?;
        let bound = self.xen.bind_interdomain(self.xen.domid(), unbound.port())?;
        bound.take()?;
        report("notify, and take at the other end", 0, overhead, || {
            bound.notify()?;
            while !unbound.take()? {}
            Ok(())
        })?;
        report("reading the clock", 0, overhead, || {
            black_box(Instant::now());
            Ok(())
        })?;
        report("take when nothing is pending", 0, overhead, || unbound.take().map(|_| ()).map_err(Into::into))
    }
}

/// An io_uring on a disk, with a registered page if `registered`.
struct Ring {
    ring: IoUring,
    registered: bool,
}

impl Ring {
    /// `None` where the kernel does not register such a page.
    fn new(disk: &File, page: Option<VolatileSlice<'_>>) -> Any<Option<Ring>> {
        let ring = IoUring::new(64)?;
        ring.submitter().register_files(&[disk.as_raw_fd()])?;
        if let Some(page) = page {
            let whole = libc::iovec { iov_base: page.ptr_guard_mut().as_ptr().cast(), iov_len: PAGE_SIZE };
            // SAFETY: the page outlives the ring in `rings`.
            match unsafe { ring.submitter().register_buffers(&[whole]) } {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(None),
                done => done?,
            }
        }
        Ok(Some(Ring { ring, registered: page.is_some() }))
    }

    fn read(&mut self, page: VolatileSlice<'_>, count: usize) -> Any<()> {
        let at = page.ptr_guard_mut().as_ptr();
        let len = PAGE_SIZE as u32;
        for block in 0..count as u64 {
            let disk = types::Fixed(0);
            let offset = block * PAGE_SIZE as u64;
            let entry = match self.registered {
                true => opcode::ReadFixed::new(disk, at, len, 0).offset(offset).build(),
                false => opcode::Read::new(disk, at, len).offset(offset).build(),
            };
            // SAFETY: the page stays mapped until all reads are complete, which is waited for below.
            unsafe { self.ring.submission().push(&entry) }?;
        }
        self.ring.submit_and_wait(count)?;
        match self.ring.completion().find(|done| done.result() != PAGE_SIZE as i32) {
            Some(wrong) => Err(format!("a read ended with {}", wrong.result()).into()),
            None => Ok(()),
        }
    }
}

fn read(disk: &mut File, mut into: VolatileSlice<'_>) -> Any<()> {
    std::io::Seek::rewind(disk)?;
    match disk.read_volatile(&mut into)? {
        PAGE_SIZE => Ok(()),
        short => Err(format!("read {short} bytes").into()),
    }
}

fn report(what: &str, pages: usize, overhead: u64, round: impl FnMut() -> Any<()>) -> Any<()> {
    let instructions = time(round)?.saturating_sub(overhead);
    println!("{what:<72} {pages:>5} {instructions:>13}");
    Ok(())
}

/// Nanoseconds of a round: the median, which a timer interrupt does not change.
fn time(mut round: impl FnMut() -> Any<()>) -> Any<u64> {
    let mut took = Vec::with_capacity(ROUNDS);
    for number in 0..WARM + ROUNDS {
        let start = Instant::now();
        round()?;
        let ns = start.elapsed().as_nanos() as u64;
        if number >= WARM {
            took.push(ns);
        }
    }
    took.sort_unstable();
    Ok(took[ROUNDS / 2])
}
