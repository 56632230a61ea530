//! A backend that is killed while it connects: its successor gets rings of its own.

use event_channel::EventChannels;
use ring_abi::blkif::key;
use ring_abi::{DomId, EventPort};
use testkit::Machine;
use testkit::block::{Backend, GUEST, XVDA, open, options};
use xenbus::{DeviceEnd, Keys, XenbusState};

#[test]
fn backend_killed_after_it_has_bound_the_channel_is_followed_by_another() {
    let machine = Machine::new();
    let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
    let [guest, dom0] = [GUEST, DomId::DOM0].map(|domid| machine.domain(domid));
    std::thread::scope(|scope| {
        let disk = scope.spawn(move || open(&guest, options()));
        let end = DeviceEnd::back(&device);
        let mut store = machine.client();
        let keys = Keys::default().with(key::SECTORS, 2048).with(key::SECTOR_SIZE, 512);
        end.publish(&mut store, &keys, XenbusState::InitWait).unwrap();
        machine.wait_for_state(&device.front_path(), XenbusState::Initialised);
        let front = end.other_keys(&mut store).unwrap();
        let port = EventPort(front.need(key::EVENT_CHANNEL).unwrap());
        drop(dom0.bind_interdomain(GUEST, port).unwrap());
        let _back = Backend::start_as(&dom0);
        let mut disk = disk.join().unwrap();
        disk.read_at(0, &mut [0; 4096]).unwrap();
        disk.close().unwrap();
    });
}
