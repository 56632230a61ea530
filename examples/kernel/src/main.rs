//! A kernel's frontends without std: the cores of xenbus, blkfront and netfront, over a grant table and event channels of
//! the kernel's own.
//!
//! There is no Xen here: [`grants`] and [`events`] are toys of a hundred lines, and the other end of each device is a few
//! lines that answer. What a kernel takes from this program is [`disk`] and [`net`]. It exits with 0 if all bytes arrived.
//!
//! The C library stands for the kernel: it gives memory, writes text and ends the program.
#![no_std]
#![no_main]

extern crate alloc;

mod disk;
mod events;
mod grants;
mod net;
mod platform;

use alloc::boxed::Box;
use alloc::format;
use events::Events;
use grants::Grants;
use ring_abi::DomId;

/// Why the program failed.
type Error = Box<dyn core::error::Error>;

/// One domain as its drivers see it.
struct Domain {
    grants: Grants,
    events: Events,
}

#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            platform::print(&format!("error: {error}\n"));
            1
        }
    }
}

fn run() -> Result<(), Error> {
    let dom0 = Domain { grants: Grants::new(DomId::DOM0), events: Events::new(DomId::DOM0) };
    let guest = Domain { grants: dom0.grants.of(DomId(1)), events: dom0.events.of(DomId(1)) };
    let sectors = disk::run(&guest, &dom0)?;
    platform::print(&format!("disk: {sectors} sectors written and read again\n"));
    let frames = net::run(&guest, &dom0)?;
    platform::print(&format!("net: {frames} frames sent and received again\n"));
    Ok(())
}
