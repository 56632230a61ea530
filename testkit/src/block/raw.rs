//! A block frontend by hand, which can do wrong what the real one cannot.

use crate::{BOUND, FrontendDevice};
use hypervisor::{Access, Channel, DomId, GrantRef, Shared};
use ring_abi::blkif::{Io, MAX_SEGMENTS, Request, Response, Segment, X86_64};
use ring_abi::ring::{Front, Protocol};
use std::sync::Arc;
use std::time::Instant;
use xenbus::XenbusState;

/// A ring of one page and as many pages of data as a request has segments.
pub struct RawFrontend<P = X86_64> {
    /// The device.
    pub device: FrontendDevice,
    /// The ring.
    pub ring: Front<P, Arc<Shared>>,
    /// The ring's page, for others to write too.
    pub memory: Arc<Shared>,
    /// Granted pages.
    pub data: Shared,
    /// The event channel.
    pub channel: Box<dyn Channel>,
}

impl<P: Protocol<Request = Request, Response = Response>> RawFrontend<P> {
    /// Connects as far as Connected, asking for the layout that `protocol` names. `persistent` says that the same
    /// pages are used again, so that the backend may keep them mapped.
    pub fn connect(device: FrontendDevice, protocol: &str, persistent: bool) -> RawFrontend<P> {
        device.wait_for_backend(XenbusState::InitWait);
        let hv = &device.hv;
        let memory = Arc::new(hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap());
        let data = hv.share(DomId::DOM0, MAX_SEGMENTS, Access::ReadWrite).unwrap();
        let ring = Front::init(memory.clone()).unwrap();
        let channel = hv.alloc_unbound(DomId::DOM0).unwrap();
        device.set("protocol", protocol);
        device.set("feature-persistent", u8::from(persistent));
        device.set("ring-ref", memory.refs()[0]);
        device.set("event-channel", channel.port());
        device.set("state", 3);
        device.wait_for_backend(XenbusState::Connected);
        RawFrontend { device, ring, memory, data, channel }
    }

    /// A request over whole pages of [`RawFrontend::data`].
    pub fn io(&self, operation: u8, id: u64, sector_number: u64, pages: &[usize]) -> Request {
        self.io_of(operation, id, sector_number, pages.iter().map(|&p| self.data.refs()[p]))
    }

    /// A request over the whole pages of these grants.
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

    /// Publishes requests, and notifies where that is wanted.
    pub fn send(&mut self, requests: &[Request]) {
        for request in requests {
            assert!(self.ring.push(request));
        }
        if self.ring.commit().wanted() {
            self.channel.notify().unwrap();
        }
    }

    /// Waits for so many responses, and gives them sorted by id.
    pub fn receive(&mut self, count: usize) -> Vec<Response> {
        let (mut responses, start) = (Vec::new(), Instant::now());
        while responses.len() < count {
            match self.ring.pop().unwrap() {
                Some(response) => responses.push(response),
                None => {
                    assert!(start.elapsed() < BOUND, "{} of {count} responses", responses.len());
                    std::thread::yield_now();
                }
            }
        }
        responses.sort_by_key(|response| response.id);
        responses
    }
}
