//! A block backend whose ring the test drives: it can notify without end, which blkback does not.

use super::{XVDA, options};
use crate::Machine;
use blkfront::{Disk, Options};
use event_channel::WaitChannel;
use grant_table::{Access, Contiguous};
use hypervisor::Hypervisor;
use ring_abi::blkif::{Request, Response, Status, X86_64, key};
use ring_abi::ring::Back;
use ring_abi::{DomId, EventPort, GrantRef};
use std::sync::Arc;
use xenbus::{Device, DeviceEnd, Keys, XenbusState};
use xenstore::Client;

/// A connected backend of one disk. Other threads may write the ring's memory too, and send events.
pub struct RawBackend {
    /// The ring.
    pub ring: Back<X86_64, Arc<Contiguous>>,
    /// The event channel, on which other threads may send events too.
    pub channel: Arc<dyn WaitChannel>,
    /// The disk's device.
    pub device: Device,
    /// Dom0's connection to the store.
    pub client: Client,
}

impl RawBackend {
    /// Attaches a disk of 1 MiB to a guest, and connects both ends. The disk never polls before it sleeps, so that each
    /// wait is one wake-up.
    pub fn connect(machine: &Machine, dom0: &dyn Hypervisor, domid: DomId) -> (Disk, RawBackend) {
        let device = machine.attach_disk(domid, XVDA, "none");
        let guest = machine.domain(domid);
        std::thread::scope(|scope| {
            let options = Options { busy_poll: std::time::Duration::ZERO, ..options() };
            let disk = scope.spawn(move || super::open(&guest, options));
            let backend = RawBackend::answer(machine, dom0, device);
            (disk.join().unwrap(), backend)
        })
    }

    fn answer(machine: &Machine, dom0: &dyn Hypervisor, device: Device) -> RawBackend {
        let end = DeviceEnd::back(&device);
        let mut client = machine.client();
        let keys = Keys::default().with(key::SECTORS, 2048).with(key::SECTOR_SIZE, 512);
        end.publish(&mut client, &keys, XenbusState::InitWait).unwrap();
        machine.wait_for_state(&device.front_path(), XenbusState::Initialised);
        let front = end.other_keys(&mut client).unwrap();
        let gref = GrantRef(front.need(key::RING_REF).unwrap());
        let ring = dom0.map_contiguous(device.front, &[gref], Access::ReadWrite).unwrap();
        let port = EventPort(front.need(key::EVENT_CHANNEL).unwrap());
        let channel = dom0.bind_interdomain(device.front, port).unwrap().into();
        end.publish(&mut client, &Keys::default(), XenbusState::Connected).unwrap();
        RawBackend { ring: Back::attach(Arc::new(ring)).unwrap(), channel, device, client }
    }

    /// Answers all requests that the guest has published, without an event; returns how many.
    pub fn answer_all(&mut self) -> usize {
        let mut answered = 0;
        while let Some(request) = self.ring.pop().unwrap() {
            self.ring.push(&response(&request));
            answered += 1;
        }
        let _ = self.ring.commit();
        answered
    }
}

fn response(request: &Request) -> Response {
    Response { id: request.id(), operation: request.operation(), status: Status::OKAY }
}
