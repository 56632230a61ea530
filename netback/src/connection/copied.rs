// Not a core: does I/O or calls a hypervisor.

//! Payloads that are copied into private buffers, by the same hypervisor call that copies the heads.
//!
//! Where mapping takes system calls (real Xen), copying costs less. A grant copy's local side must be a page of the
//! calling domain, so that a mapped payload for another guest would be copied twice anyway. The guest's pages are free
//! at once, and packets are answered in the order of their requests.
#![allow(unsafe_code)] // Buffers are filled by address.

use crate::assemble::Packet;
use bridge::{Buffer, DropReason, Frame, HEAD, Pool};
use grant_table::{CopyOp, CopyPtr, SharedSlice};
use ring_abi::{DomId, PAGE_SIZE};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Packets with a payload that are not sent on yet: more than a round of the bridge takes.
const BUFFERS: u32 = 256;
/// Bytes of a buffer: the longest packet, at any offset in its first page.
const BUFFER: usize = (1 << 16) + PAGE_SIZE;

/// A pool of buffers, and the buffers of this round.
pub(super) struct Copied {
    pool: Arc<Pool>,
    /// For each packet of this round without its frame yet, its buffer if it has one.
    waiting: VecDeque<Option<Buffer>>,
}

impl Copied {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { pool: Pool::new(BUFFERS, BUFFER)?, waiting: VecDeque::new() })
    }

    /// Adds the copies that fill a buffer with the bytes beyond the packet's head.
    pub(super) fn add_copies(&mut self, guest: DomId, packet: &Packet, list: &mut Vec<CopyOp<'_>>) {
        let buffer = if packet.size() > HEAD { self.pool.take() } else { None };
        if let Some(buffer) = &buffer {
            let mut to = buffer.as_mut_ptr().wrapping_add(payload_offset(packet));
            for fragment in packet.fragments_beyond(HEAD) {
                // SAFETY: the fragments sum to less than 64 KiB and begin in the buffer's first page. Nothing else has the
                // buffer until it is given to a frame, after the copy.
                let memory = unsafe { SharedSlice::new(to, fragment.size.into()) };
                let source = CopyPtr::Grant { domid: guest, gref: fragment.gref, offset: fragment.offset };
                list.push(CopyOp::new(source, CopyPtr::Memory(memory), fragment.size));
                to = to.wrapping_add(fragment.size.into());
            }
        }
        self.waiting.push_back(buffer);
    }

    /// Appends the payload to the frame of a packet. To be called in the order of [`Copied::add_copies`].
    pub(super) fn attach(&mut self, packet: &Packet, frame: &mut Frame) -> Result<(), DropReason> {
        let buffer = self.waiting.pop_front().flatten();
        if packet.size() <= HEAD {
            return Ok(());
        }
        buffer.ok_or(DropReason::NoBuffer)?.give_part_to(frame, payload_offset(packet), packet.size() - HEAD);
        Ok(())
    }
}

/// The payload's offset in its first page, and so in its buffer: copying between equal offsets takes one operation of
/// Xen's, and two where the destination crosses a page's end.
fn payload_offset(packet: &Packet) -> usize {
    packet.fragments_beyond(HEAD).next().map_or(0, |fragment| fragment.offset.into())
}
