// Not a core: does I/O or calls a hypervisor.

//! Payloads that are not copied: the guest's pages stay mapped until the last frame that points into them is dropped.
#![allow(unsafe_code)] // Frames point into the guest's mapped pages.

use crate::assemble::Packet;
use crate::stats::Stats;
use arrayvec::ArrayVec;
use bridge::{DropReason, Fragment, Frame, HEAD, PinTable};
use grant_table::{Access, GrantTable, Mapping};
use ring_abi::netif::SLOTS_FATAL;
use ring_abi::{DomId, GrantRef};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A packet that is answered once its payload is unmapped.
pub(super) struct PendingResponse {
    /// The ids of its requests.
    pub(super) ids: ArrayVec<u16, SLOTS_FATAL>,
    /// The number of its extras.
    pub(super) extras: u8,
}

/// The mapped payloads of one guest.
pub(super) struct Mapped {
    grants: Arc<dyn GrantTable>,
    guest: DomId,
    payloads: PinTable<(PendingResponse, Mapping)>,
    stats: Arc<Stats>,
}

impl Mapped {
    /// A table for `limit` packets.
    pub(super) fn new(
        grants: Arc<dyn GrantTable>,
        guest: DomId,
        limit: u16,
        stats: Arc<Stats>,
    ) -> io::Result<Self> {
        Ok(Self { grants, guest, payloads: PinTable::new(limit)?, stats })
    }

    /// Maps the pages beyond the head and appends them to the frame.
    pub(super) fn attach(&mut self, packet: &Packet, frame: &mut Frame) -> Result<(), DropReason> {
        let mut grefs: ArrayVec<GrantRef, SLOTS_FATAL> = ArrayVec::new();
        grefs.extend(packet.fragments_beyond(HEAD).map(|fragment| fragment.gref));
        let mapping =
            self.grants.map(self.guest, &grefs, Access::ReadOnly).map_err(|_| DropReason::Malformed)?;
        self.stats.mapped.add(grefs.len() as u64);
        let pending =
            PendingResponse { ids: packet.ids().iter().copied().collect(), extras: packet.extras() };
        let Ok((pin, (_, mapping))) = self.payloads.insert((pending, mapping)) else {
            return Err(DropReason::NoBuffer);
        };
        frame.pin(pin);
        for (page, fragment) in packet.fragments_beyond(HEAD).enumerate() {
            // Inside its page, as was checked when the packet was assembled.
            let bytes = mapping.slice(page, fragment.offset.into(), fragment.size.into());
            let bytes = bytes.ok_or(DropReason::Malformed)?;
            // SAFETY: the page stays mapped until the table returns the mapping: after the last clone of the frame's pin
            // is dropped.
            let seg = unsafe { Fragment::new(bytes.as_ptr(), fragment.size.into()) };
            // At most 18 fragments; a frame takes 20.
            let _ = frame.push(seg);
        }
        Ok(())
    }

    /// Unmaps a packet whose frames are all dropped, and returns its pending response.
    #[inline]
    pub(super) fn reap(&mut self) -> Option<PendingResponse> {
        self.payloads.reap().map(|(pending, _)| pending)
    }

    /// Makes [`Mapped::fd`] become readable at the next release; `true` if there are released packets already.
    pub(super) fn arm(&mut self) -> bool {
        self.payloads.arm()
    }

    /// Whether there are released packets.
    pub(super) fn has_released(&self) -> bool {
        self.payloads.has_released()
    }

    /// Takes the event of a release.
    pub(super) fn take_event(&self) {
        self.payloads.take_event();
    }

    /// Becomes readable when a packet is released after [`Mapped::arm`], until that event is taken.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.payloads.fd()
    }
}
