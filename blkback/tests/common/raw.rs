//! A front end made by hand, that can do wrong what the real one cannot.

use std::sync::Arc;
use std::time::Instant;

use hypervisor::local::Domain;
use hypervisor::{Access, Channel, DomId, GrantRef, Hypervisor, Shared};
use ring_abi::blkif::{Io, Request, Response, Segment, X86_64};
use ring_abi::ring::Front;
use ring_abi::shm::{Memory, Slot};
use xenstore::xenbus::Device;
use xenstore::{Nodes, XenbusState};

use super::{BOUND, Machine};

pub struct Raw {
    pub hv: Arc<Domain>,
    pub device: Device,
    pub ring: Front<X86_64, Ring>,
    pub memory: Ring,
    pub data: Shared,
    pub channel: Box<dyn Channel>,
}

/// A ring's page that others may write too.
#[derive(Clone)]
pub struct Ring(pub Arc<Shared>);

// SAFETY: as `Shared`'s, which lives as long as any clone.
unsafe impl Memory for Ring {
    fn base(&self) -> std::ptr::NonNull<u8> {
        self.0.base()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

impl Ring {
    /// All of it, by words.
    pub fn words(&self) -> Slot<'_> {
        // SAFETY: the shared pages live as long as `self`, and are touched by words only.
        unsafe { Slot::new(self.base(), self.len()) }
    }
}

impl Raw {
    /// Connects as far as Connected.
    pub fn connect(machine: &Machine, hv: Arc<Domain>, device: Device) -> Raw {
        machine.await_state(&device.back_path(), XenbusState::InitWait);
        let memory = Ring(Arc::new(hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap()));
        let data = hv.share(DomId::DOM0, 11, Access::ReadWrite).unwrap();
        let ring = Front::init(memory.clone()).unwrap();
        let channel = hv.listen(DomId::DOM0).unwrap();
        let keys = [("ring-ref", memory.0.refs()[0].0), ("event-channel", channel.port().0), ("state", 3)];
        for (key, value) in keys {
            machine.tool().write(&format!("{}/{key}", device.front_path()), value.to_string()).unwrap();
        }
        machine.await_state(&device.back_path(), XenbusState::Connected);
        Raw { hv, device, ring, memory, data, channel }
    }

    pub fn io(&self, operation: u8, id: u64, sector_number: u64, pages: &[usize]) -> Request {
        self.io_of(operation, id, sector_number, pages.iter().map(|&p| self.data.refs()[p]))
    }

    pub fn io_of(
        &self,
        operation: u8,
        id: u64,
        sector_number: u64,
        refs: impl IntoIterator<Item = GrantRef>,
    ) -> Request {
        let segments: arrayvec::ArrayVec<_, 11> =
            refs.into_iter().map(|gref| Segment { gref, first_sect: 0, last_sect: 7 }).collect();
        let nr_segments = segments.len() as u8;
        Request::Io(Io { operation, handle: 0, id, sector_number, nr_segments, segments })
    }

    pub fn send(&mut self, requests: &[Request]) {
        for request in requests {
            assert!(self.ring.push(request));
        }
        if self.ring.commit().wanted() {
            self.channel.notify().unwrap();
        }
    }

    /// Waits for so many answers, and gives them sorted by id.
    pub fn receive(&mut self, count: usize) -> Vec<Response> {
        let (mut answers, start) = (Vec::new(), Instant::now());
        while answers.len() < count {
            match self.ring.pop().unwrap() {
                Some(answer) => answers.push(answer),
                None => {
                    assert!(start.elapsed() < BOUND, "{} of {count} answers", answers.len());
                    std::thread::yield_now();
                }
            }
        }
        answers.sort_by_key(|a| a.id);
        answers
    }
}
