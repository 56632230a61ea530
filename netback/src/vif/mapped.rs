//! Payloads that stay where they are: mapped until the last frame that points there is gone.
#![allow(unsafe_code)] // Frames point into the guest's mapped pages.

use crate::assemble::Packet;
use crate::hold::Keeper;
use arrayvec::ArrayVec;
use bridge::{Fragment, Frame, Reason};
use hypervisor::{Access, Hypervisor, Mapping};
use ring_abi::netif::SLOTS_FATAL;
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::ingress::body;

/// Who is to be answered for a packet whose payload nobody uses any more.
pub(super) struct Answer {
    /// Its requests.
    pub(super) ids: ArrayVec<u16, SLOTS_FATAL>,
    /// Its extras.
    pub(super) extras: u8,
}

/// Mapped payloads of one guest.
pub(super) struct Mapped {
    hv: Arc<dyn Hypervisor>,
    guest: DomId,
    keeper: Keeper<(Answer, Mapping)>,
}

impl Mapped {
    /// Room for `limit` packets.
    pub(super) fn new(hv: Arc<dyn Hypervisor>, guest: DomId, limit: u16) -> io::Result<Self> {
        Ok(Self { hv, guest, keeper: Keeper::new(limit)? })
    }

    /// Maps what follows the head and lets the frame point to it.
    pub(super) fn attach(&mut self, packet: &Packet, frame: &mut Frame) -> Result<(), Reason> {
        let mut grefs: ArrayVec<GrantRef, SLOTS_FATAL> = ArrayVec::new();
        grefs.extend(body(packet).map(|part| part.gref));
        let mapping = self.hv.map(self.guest, &grefs, Access::ReadOnly).map_err(|_| Reason::Malformed)?;
        let answer = Answer { ids: packet.ids().iter().copied().collect(), extras: packet.extras() };
        let Ok((pin, (_, mapping))) = self.keeper.keep((answer, mapping)) else {
            return Err(Reason::NoBuffer);
        };
        frame.pin(pin);
        for (page, part) in body(packet).enumerate() {
            debug_assert!(usize::from(part.offset) + usize::from(part.size) <= PAGE_SIZE);
            let start = mapping.base(page).as_ptr().wrapping_add(part.offset.into());
            // SAFETY: the part lies in its page (checked when it was assembled), which stays mapped until the
            // keeper gives the mapping back: after the last clone of the frame's pin.
            let seg = unsafe { Fragment::new(start, part.size.into()) };
            // 18 parts at most: a frame has room for 20.
            let _ = frame.push(seg);
        }
        Ok(())
    }

    /// The next packet that nobody points to any more; it is unmapped.
    #[inline]
    pub(super) fn reap(&mut self) -> Option<Answer> {
        self.keeper.reap().map(|(answer, _)| answer)
    }

    /// Asks to be woken by pages let go of; `true` if there are some already.
    pub(super) fn arm(&mut self) -> bool {
        self.keeper.arm()
    }

    /// Readable once pages were let go of.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.keeper.fd()
    }
}
