//! Payloads by copy: into buffers of our own, by the same call that copies the heads.
//!
//! Where a map costs system calls (real Xen) a copy costs less, whatever becomes of the packet: Xen copies from
//! pages of its own domains only, so that a mapped payload would have to be copied twice on its way to another
//! guest anyhow. The guest has its pages back at once, and is answered in the order in which it asked.
#![allow(unsafe_code)] // Buffers are filled by address.

use crate::assemble::Packet;
use bridge::{Buffer, Frame, HEAD, Pool, Reason};
use hypervisor::{CopyOp, CopyPtr};
use ring_abi::{DomId, PAGE_SIZE};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use vm_memory::VolatileSlice;

use super::ingress::body;

/// Packets with a payload on their way: more than a round of the bridge takes.
const BUFFERS: u32 = 256;
/// The longest packet, wherever in a page it begins.
const BUFFER: usize = (1 << 16) + PAGE_SIZE;

/// Buffers, and those of this round that wait for their frames: one entry for each packet.
pub(super) struct Copied {
    pool: Arc<Pool>,
    waiting: VecDeque<Option<Buffer>>,
}

impl Copied {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { pool: Pool::new(BUFFERS, BUFFER)?, waiting: VecDeque::new() })
    }

    /// Adds the copies that fill a buffer with what follows the packet's head.
    pub(super) fn pull(&mut self, guest: DomId, packet: &Packet, list: &mut Vec<CopyOp<'_>>) {
        let buffer = if packet.size() > HEAD { self.pool.take() } else { None };
        if let Some(buffer) = &buffer {
            let mut to = buffer.as_mut_ptr().wrapping_add(start(packet));
            for part in body(packet) {
                // SAFETY: the parts sum to less than 64 KiB and begin in the buffer's first page; the buffer is ours
                // alone until it is given to a frame, and that is after the copy.
                let memory = unsafe { VolatileSlice::new(to, part.size.into()) };
                let source = CopyPtr::Grant { domid: guest, gref: part.gref, offset: part.offset };
                list.push(CopyOp::new(source, CopyPtr::Memory(memory), part.size));
                to = to.wrapping_add(part.size.into());
            }
        }
        self.waiting.push_back(buffer);
    }

    /// Gives the packet pulled first its payload.
    pub(super) fn attach(&mut self, packet: &Packet, frame: &mut Frame) -> Result<(), Reason> {
        let buffer = self.waiting.pop_front().flatten();
        if packet.size() <= HEAD {
            return Ok(());
        }
        buffer.ok_or(Reason::NoBuffer)?.give_part_to(frame, start(packet), packet.size() - HEAD);
        Ok(())
    }
}

/// Where in its page a payload begins: kept as it is, since a copy between equal places is one of Xen's, and
/// otherwise two.
fn start(packet: &Packet) -> usize {
    body(packet).next().map_or(0, |part| part.offset.into())
}
