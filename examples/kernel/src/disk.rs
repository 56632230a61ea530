//! A disk: the frontend is what a kernel writes over `blkfront`'s cores; the backend answers from memory.

use crate::{Domain, Error};
use alloc::vec;
use alloc::vec::Vec;
use blkfront::handshake::{MANNER, Negotiated, QueueInfo, frontend_keys};
use blkfront::queue::{Operation, Queue};
use event_channel::{Channel, EventChannels};
use grant_table::{Access, Contiguous, CopyOp, CopyPtr, GrantTable, Shared};
use ring_abi::blkif::{OP_READ, Request, Response, SECTOR, Segment, Status, X86_64, key};
use ring_abi::ring::Back;
use ring_abi::{DomId, EventPort, GrantRef, PAGE_SIZE};
use xenbus::handshake::front::{Action, Handshake};
use xenbus::{Keys, XenbusState};

const SECTORS: usize = 64;

/// Writes every sector of a disk and reads it again; returns how many.
pub(crate) fn run(guest: &Domain, dom0: &Domain) -> Result<usize, Error> {
    let mut front = Frontend::open(guest)?;
    let mut back = Backend::connect(dom0, guest.grants.domid(), &front.keys)?;
    front.connect(&back.keys())?;
    let page_sectors = PAGE_SIZE / SECTOR;
    for sector in (0..SECTORS).step_by(page_sectors) {
        let pattern = vec![sector as u8 ^ 0x5a; PAGE_SIZE];
        let buffer = guest.grants.share(DomId::DOM0, 1, Access::ReadWrite)?;
        buffer.slice(0, PAGE_SIZE).ok_or("inside")?.copy_from(&pattern);
        let buffer = front.transfer(Operation::Write, sector as u64, buffer, &mut back)?;
        buffer.slice(0, PAGE_SIZE).ok_or("inside")?.copy_from(&[0; PAGE_SIZE]);
        let buffer = front.transfer(Operation::Read, sector as u64, buffer, &mut back)?;
        let mut read = vec![0; PAGE_SIZE];
        buffer.slice(0, PAGE_SIZE).ok_or("inside")?.copy_to(&mut read);
        if read != pattern {
            return Err("the disk returned other bytes".into());
        }
    }
    Ok(SECTORS)
}

/// The frontend: handshake, ring and event channel.
struct Frontend {
    handshake: Handshake,
    queue: Queue<X86_64, Shared, Shared>,
    channel: <crate::events::Events as EventChannels>::Channel,
    /// What it publishes in the store.
    keys: Keys,
}

impl Frontend {
    /// Grants a ring and publishes it, once the backend waits for it.
    fn open(guest: &Domain) -> Result<Self, Error> {
        let mut handshake = Handshake::new(MANNER, XenbusState::Initialising);
        if handshake.next(XenbusState::InitWait, true) != Action::Offer {
            return Err("the handshake offers no ring".into());
        }
        let ring = guest.grants.share(DomId::DOM0, 1, Access::ReadWrite)?;
        let channel = guest.events.alloc_unbound(DomId::DOM0)?;
        let keys = frontend_keys(&[QueueInfo { refs: ring.refs(), port: channel.port() }], false);
        let mut queue = Queue::new(0);
        queue.connect(ring).map_err(|error| alloc::format!("{error}"))?;
        Ok(Self { handshake, queue, channel, keys })
    }

    /// Takes up the disk's properties once the backend is Connected.
    fn connect(&mut self, back: &Keys) -> Result<(), Error> {
        match self.handshake.next(XenbusState::Connected, true) {
            Action::Connected => {}
            action => return Err(alloc::format!("{action:?}").into()),
        }
        let disk = Negotiated::from_keys(back).map_err(|error| alloc::format!("{error}"))?;
        if disk.sectors != SECTORS as u64 {
            return Err(alloc::format!("a disk of {} sectors", disk.sectors).into());
        }
        Ok(())
    }

    /// Reads or writes one page and returns its buffer.
    fn transfer(
        &mut self,
        operation: Operation,
        sector: u64,
        buffer: Shared,
        back: &mut Backend,
    ) -> Result<Shared, Error> {
        let last_sect = (PAGE_SIZE / SECTOR - 1) as u8;
        let segment = Segment { gref: buffer.refs()[0], first_sect: 0, last_sect };
        self.queue.submit(operation, sector, &[segment], buffer).map_err(|_| "the ring is full")?;
        if self.queue.commit().wanted() {
            self.channel.notify()?;
        }
        back.serve()?;
        if !self.channel.take()? {
            return Err("no event for the response".into());
        }
        let mut completed = None;
        let polled = self.queue.poll(|buffer, status| completed = Some((buffer, status)));
        polled.map_err(|fault| alloc::format!("{fault}"))?;
        if self.queue.arm().map_err(|fault| alloc::format!("{fault}"))? {
            return Err("a second response".into());
        }
        match completed {
            Some((buffer, Status::OKAY)) => Ok(buffer),
            Some((_, status)) => Err(alloc::format!("the backend answered {}", status.0).into()),
            None => Err("no response".into()),
        }
    }
}

/// The other end: a disk in memory.
struct Backend<'a> {
    dom0: &'a Domain,
    guest: DomId,
    ring: Back<X86_64, Contiguous>,
    channel: <crate::events::Events as EventChannels>::Channel,
    disk: Vec<u8>,
}

impl<'a> Backend<'a> {
    fn connect(dom0: &'a Domain, guest: DomId, front: &Keys) -> Result<Self, Error> {
        let gref = GrantRef(front.need(key::RING_REF).map_err(|error| alloc::format!("{error}"))?);
        let port = EventPort(front.need(key::EVENT_CHANNEL).map_err(|error| alloc::format!("{error}"))?);
        let ring = dom0.grants.map_contiguous(guest, &[gref], Access::ReadWrite)?;
        let ring = Back::attach(ring).map_err(|error| alloc::format!("{error}"))?;
        let channel = dom0.events.bind_interdomain(guest, port)?;
        Ok(Self { dom0, guest, ring, channel, disk: vec![0; SECTORS * SECTOR] })
    }

    fn keys(&self) -> Keys {
        Keys::default().with(key::SECTORS, SECTORS).with(key::SECTOR_SIZE, SECTOR).with("info", 0)
    }

    /// Carries out the requests on the ring.
    fn serve(&mut self) -> Result<(), Error> {
        self.channel.take()?;
        while let Some(request) = self.ring.pop().map_err(|fault| alloc::format!("{fault}"))? {
            let status = self.carry_out(&request)?;
            self.ring.push(&Response { id: request.id(), operation: request.operation(), status });
        }
        if self.ring.commit().wanted() {
            self.channel.notify()?;
        }
        self.ring.arm().map_err(|fault| alloc::format!("{fault}"))?;
        Ok(())
    }

    fn carry_out(&mut self, request: &Request) -> Result<Status, Error> {
        let Request::Io(io) = request else { return Ok(Status::EOPNOTSUPP) };
        let mut at = io.sector_number as usize * SECTOR;
        for segment in &io.segments {
            let len = (usize::from(segment.last_sect - segment.first_sect) + 1) * SECTOR;
            let Some(sectors) = self.disk.get_mut(at..at + len) else { return Ok(Status::ERROR) };
            let offset = u16::from(segment.first_sect) * SECTOR as u16;
            let page = CopyPtr::Grant { domid: self.guest, gref: segment.gref, offset };
            let memory = CopyPtr::Memory(sectors.into());
            let (source, dest) = if io.operation == OP_READ { (memory, page) } else { (page, memory) };
            let mut ops = [CopyOp::new(source, dest, len as u16)];
            self.dom0.grants.copy(&mut ops)?;
            if !ops[0].status.is_okay() {
                return Ok(Status::ERROR);
            }
            at += len;
        }
        Ok(Status::OKAY)
    }
}
