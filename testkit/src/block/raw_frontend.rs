//! A block frontend whose requests and keys the test writes: it can break the protocol, which blkfront cannot.

use crate::{BOUND, FrontendDevice};
use event_channel::Channel;
use grant_table::{Access, Shared};
use ring_abi::blkif::{Indirect, Io, MAX_SEGMENTS, Request, Response, Segment, X86_64, indirect, key};
use ring_abi::ring::{Front, Protocol};
use ring_abi::{DomId, GrantRef};
use std::sync::Arc;
use std::time::Instant;
use xenbus::XenbusState;

/// A ring of one page and as many pages of data as a request has segments.
pub struct RawFrontend<P = X86_64> {
    /// The device.
    pub device: FrontendDevice,
    /// The ring.
    pub ring: Front<P, Arc<Shared>>,
    /// The ring's page, which other threads may write too.
    pub memory: Arc<Shared>,
    /// Granted pages.
    pub data: Shared,
    /// The event channel.
    pub channel: Box<dyn Channel>,
}

impl<P: Protocol<Request = Request, Response = Response>> RawFrontend<P> {
    /// Connects with the ring layout `protocol`. `persistent` is the value of `feature-persistent`: with it the backend
    /// may keep the pages mapped.
    pub fn connect(device: FrontendDevice, protocol: &str, persistent: bool) -> RawFrontend<P> {
        device.wait_for_backend(XenbusState::InitWait);
        let frontend = RawFrontend::new(device);
        frontend.publish("");
        frontend.switch_to_connected(protocol, persistent);
        frontend
    }

    /// Connects with so many queues, two or more, each of which has a ring, pages and an event channel of its own.
    pub fn connect_queues(device: &FrontendDevice, protocol: &str, count: usize) -> Vec<RawFrontend<P>> {
        device.wait_for_backend(XenbusState::InitWait);
        let queues: Vec<_> = (0..count).map(|_| RawFrontend::new(device.clone())).collect();
        for (number, queue) in queues.iter().enumerate() {
            queue.publish(&format!("queue-{number}/"));
        }
        device.set(key::MULTI_QUEUE_NUM_QUEUES, count);
        queues[0].switch_to_connected(protocol, false);
        queues
    }

    /// Makes a ring, of which nobody is told.
    pub fn new(device: FrontendDevice) -> RawFrontend<P> {
        let hv = &device.hv;
        let memory = Arc::new(hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap());
        let data = hv.share(DomId::DOM0, MAX_SEGMENTS, Access::ReadWrite).unwrap();
        let ring = Front::init(memory.clone()).unwrap();
        let channel = hv.alloc_unbound(DomId::DOM0).unwrap();
        RawFrontend { device, ring, memory, data, channel }
    }

    /// Writes the ring's keys below a directory: `queue-1/`, or none for a device with a single queue.
    pub fn publish(&self, directory: &str) {
        self.device.set(&format!("{directory}{}", key::RING_REF), self.memory.refs()[0]);
        self.device.set(&format!("{directory}{}", key::EVENT_CHANNEL), self.channel.port());
    }

    fn switch_to_connected(&self, protocol: &str, persistent: bool) {
        self.device.set(key::PROTOCOL, protocol);
        self.device.set(key::FEATURE_PERSISTENT, u8::from(persistent));
        self.device.switch(XenbusState::Initialised);
        self.device.wait_for_backend(XenbusState::Connected);
    }

    /// Makes a request for whole pages of [`RawFrontend::data`].
    pub fn io(&self, operation: u8, id: u64, sector_number: u64, pages: &[usize]) -> Request {
        self.io_of(operation, id, sector_number, pages.iter().map(|&p| self.data.refs()[p]))
    }

    /// Makes a request for the whole pages of these grants.
    pub fn io_of(
        &self,
        operation: u8,
        id: u64,
        sector_number: u64,
        refs: impl IntoIterator<Item = GrantRef>,
    ) -> Request {
        let segment = |gref| Segment { gref, first_sect: 0, last_sect: 7 };
        let segments: arrayvec::ArrayVec<_, MAX_SEGMENTS> = refs.into_iter().map(segment).collect();
        let nr_segments = segments.len() as u8;
        Request::Io(Io { operation, handle: 0, id, sector_number, nr_segments, segments })
    }

    /// Makes an indirect request for the whole pages of these grants, and the pages that hold its segments.
    pub fn indirect(
        &self,
        indirect_op: u8,
        id: u64,
        sector_number: u64,
        refs: &[GrantRef],
    ) -> (Request, Shared) {
        let segments: Vec<_> =
            refs.iter().map(|&gref| Segment { gref, first_sect: 0, last_sect: 7 }).collect();
        self.indirect_of(indirect_op, id, sector_number, &segments)
    }

    /// Makes an indirect request with these segments, and the pages that hold them.
    pub fn indirect_of(
        &self,
        indirect_op: u8,
        id: u64,
        sector_number: u64,
        segments: &[Segment],
    ) -> (Request, Shared) {
        let count = indirect::page_bytes(segments.len()).count().max(1);
        let pages = self.device.hv.share(DomId::DOM0, count, Access::ReadOnly).unwrap();
        let mut bytes = vec![0; segments.len() * indirect::SEGMENT];
        indirect::write_segments(&mut bytes, segments);
        pages.slice(0, bytes.len()).unwrap().copy_from(&bytes);
        let indirect_grefs =
            std::array::from_fn(|page| pages.refs().get(page).copied().unwrap_or(GrantRef(u32::MAX)));
        let nr_segments = segments.len() as u16;
        let request = Indirect { indirect_op, nr_segments, id, sector_number, handle: 0, indirect_grefs };
        (Request::Indirect(request), pages)
    }

    /// Publishes requests, and notifies the backend if it waits for an event.
    pub fn send(&mut self, requests: &[Request]) {
        for request in requests {
            assert!(self.ring.push(request));
        }
        if self.ring.commit().wanted() {
            self.channel.notify().unwrap();
        }
    }

    /// Waits for `count` responses and returns them sorted by id.
    pub fn receive(&mut self, count: usize) -> Vec<Response> {
        let mut responses = Vec::new();
        let start = Instant::now();
        while responses.len() < count {
            match self.ring.pop().unwrap() {
                Some(response) => responses.push(response),
                None => {
                    assert!(
                        start.elapsed() < BOUND,
                        "{} of {count} responses within {BOUND:?}",
                        responses.len()
                    );
                    std::thread::yield_now();
                }
            }
        }
        responses.sort_by_key(|response| response.id);
        responses
    }
}
