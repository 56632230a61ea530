//! A frontend made by hand, that can do wrong what the real one cannot; over any hypervisor.

use std::sync::Arc;
use std::time::Instant;

use hypervisor::{Access, Channel, DomId, GrantRef, Hypervisor, Shared};
use ring_abi::blkif::{Io, Request, Response, Segment, X86_64};
use ring_abi::ring::{Front, Protocol};
use ring_abi::shm::{Memory, Slot};
use xenstore::xenbus::Device;
use xenstore::{Client, Nodes, XenbusState};

use super::BOUND;

/// A device, seen from its frontend's domain, with that domain's rights.
#[derive(Clone)]
pub struct Seat {
    pub hv: Arc<dyn Hypervisor>,
    pub device: Device,
    /// The frontend says that it uses the same pages again, so that the backend may keep them mapped.
    pub persistent: bool,
}

impl Seat {
    pub fn store(&self) -> Client {
        Client::new(self.hv.store().unwrap())
    }

    /// Writes a key of the frontend's.
    pub fn set(&self, key: &str, value: impl ToString) {
        let path = format!("{}/{key}", self.device.front_path());
        self.store().write(&path, value.to_string()).unwrap();
    }

    pub fn remove(&self, key: &str) {
        self.store().rm(&format!("{}/{key}", self.device.front_path())).unwrap();
    }

    /// Waits for the backend's state.
    pub fn await_back(&self, state: XenbusState) {
        let (mut store, path) = (self.store(), format!("{}/state", self.device.back_path()));
        store.watch(&path, "state").unwrap();
        let deadline = Instant::now() + BOUND;
        while store.read_opt_as(&path).unwrap() != Some(state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {path} {state}");
            let _ = store.wait_event(Some(left)).unwrap();
        }
    }
}

pub struct Raw<P = X86_64> {
    pub seat: Seat,
    pub ring: Front<P, Ring>,
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

impl<P: Protocol<Request = Request, Response = Response>> Raw<P> {
    /// Connects as far as Connected, asking for the layout that `protocol` names.
    pub fn connect(seat: Seat, protocol: &str) -> Raw<P> {
        seat.await_back(XenbusState::InitWait);
        let hv = &seat.hv;
        let memory = Ring(Arc::new(hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap()));
        let data = hv.share(DomId::DOM0, 11, Access::ReadWrite).unwrap();
        let ring = Front::init(memory.clone()).unwrap();
        let channel = hv.alloc_unbound(DomId::DOM0).unwrap();
        seat.set("protocol", protocol);
        seat.set("feature-persistent", u8::from(seat.persistent));
        seat.set("ring-ref", memory.0.refs()[0]);
        seat.set("event-channel", channel.port());
        seat.set("state", 3);
        seat.await_back(XenbusState::Connected);
        Raw { seat, ring, memory, data, channel }
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
