//! A disk whose connection to the store is lost: requests are served, and what happened meanwhile is noticed once the
//! store is connected again.

use blkfront::{Disk, Options};
use hypervisor::local::Domain;
use std::sync::Arc;
use std::time::Instant;
use tempfile::NamedTempFile;
use testkit::block::{Backend, GUEST, XVDA, options};
use testkit::random::bytes;
use testkit::{BOUND, LossyStore, Machine};
use xenbus::{Device, XenbusState};
use xenstore::Nodes;

const MIB: u64 = 1 << 20;

/// A disk of 1 MiB, and all that serves it. Fields are dropped in this order.
struct Setup {
    disk: Disk,
    store: Arc<LossyStore>,
    back: Backend,
    device: Device,
    file: NamedTempFile,
    guest: Arc<Domain>,
    machine: Machine,
}

fn setup() -> Setup {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB).unwrap();
    let machine = Machine::new();
    let back = Backend::start(&machine);
    let device = machine.attach_disk(GUEST, XVDA, file.path().to_str().unwrap());
    let guest = machine.domain(GUEST);
    let store = LossyStore::new(guest.clone());
    let disk = open(&guest, &store).unwrap();
    Setup { disk, store, back, device, file, guest, machine }
}

fn open(guest: &Arc<Domain>, store: &Arc<LossyStore>) -> blkfront::Result<Disk> {
    Disk::open_with(
        guest.clone(),
        guest.clone(),
        store.clone(),
        XVDA,
        Options { timeout: BOUND, ..options() },
    )
}

impl Setup {
    /// Writes and reads every page.
    fn assert_served(&mut self, seed: u64) {
        let written = bytes(seed, MIB as usize);
        self.disk.write_at(0, &written).unwrap();
        let mut read = vec![0; written.len()];
        self.disk.read_at(0, &mut read).unwrap();
        assert!(read == written);
    }

    /// Waits as a caller without requests does, until the disk is as wanted.
    fn wait_until(&mut self, what: &str, is: impl Fn(&Disk) -> bool) {
        let started = Instant::now();
        while !is(&self.disk) {
            assert!(started.elapsed() < BOUND, "not within {BOUND:?}: {what}");
            let _ = self.disk.wait(&mut Vec::new(), Some(BOUND));
        }
    }

    fn resize(&self, bytes: u64) {
        self.file.as_file().set_len(bytes).unwrap();
        // Any write in the backend's directory makes it read the size again.
        self.machine.client().write(&format!("{}/resize", self.device.back_path()), "1").unwrap();
    }
}

#[test]
fn requests_are_served_while_the_store_is_lost_and_a_resize_is_noticed_afterwards() {
    let mut setup = setup();
    setup.store.cut();
    setup.assert_served(1);
    setup.resize(2 * MIB);
    setup.assert_served(2);
    setup.store.accept();
    setup.wait_until("resized", |disk| disk.info().unwrap().sectors == 2 * MIB / 512);
    // The same ring all the time.
    assert_eq!(setup.machine.state(&setup.device.front_path()), XenbusState::Connected);
    setup.resize(4 * MIB);
    setup.wait_until("resized again", |disk| disk.info().unwrap().sectors == 4 * MIB / 512);
    setup.disk.close().unwrap();
}

#[test]
fn backend_restarted_while_the_store_is_lost_serves_all_requests() {
    let mut setup = setup();
    setup.assert_served(1);
    setup.store.cut();
    setup.back.stop();
    setup.back = Backend::start(&setup.machine);
    setup.machine.wait_for_state(&setup.device.back_path(), XenbusState::InitWait);
    setup.store.accept();
    setup.assert_served(2);
    assert!(std::fs::read(setup.file.path()).unwrap() == bytes(2, MIB as usize));
    setup.disk.close().unwrap();
}

#[test]
fn disk_is_closed_by_its_handshake_though_the_store_was_lost() {
    let setup = setup();
    setup.store.cut();
    setup.store.accept();
    setup.disk.close().unwrap();
    assert_eq!(setup.machine.state(&setup.device.front_path()), XenbusState::Closed);
    assert_eq!(setup.guest.quarantined(ring_abi::DomId::DOM0), 0, "everything was unmapped");
    open(&setup.guest, &setup.store).unwrap().close().unwrap();
}

#[test]
fn device_removed_while_the_store_is_lost_closes_the_disk() {
    let mut setup = setup();
    setup.store.cut();
    setup.machine.detach(&setup.device);
    setup.machine.remove(&setup.device);
    setup.store.accept();
    setup.wait_until("closed", Disk::is_closed);
    assert!(setup.disk.read_at(0, &mut [0; 512]).is_err());
}

/// Attaches another disk under the number of one that is removed. Requests in flight must not be sent to it.
fn replace(setup: &Setup) -> NamedTempFile {
    setup.machine.detach(&setup.device);
    setup.machine.remove(&setup.device);
    let other = NamedTempFile::new().unwrap();
    other.as_file().set_len(MIB).unwrap();
    setup.machine.attach_disk(GUEST, XVDA, other.path().to_str().unwrap());
    setup.machine.wait_for_state(&setup.device.back_path(), XenbusState::InitWait);
    other
}

/// Asserts that the disk closes and leaves the other one alone, which can be opened.
fn assert_closes(mut setup: Setup) {
    setup.wait_until("closed", Disk::is_closed);
    assert!(setup.disk.read_at(0, &mut [0; 512]).is_err());
    assert_eq!(setup.machine.state(&setup.device.front_path()), XenbusState::Initialising);
    open(&setup.guest, &setup.store).unwrap().close().unwrap();
}

#[test]
fn device_replaced_while_the_store_is_lost_closes_the_disk() {
    let setup = setup();
    setup.store.cut();
    let _other = replace(&setup);
    setup.store.accept();
    assert_closes(setup);
}

#[test]
fn device_replaced_between_two_events_closes_the_disk() {
    let setup = setup();
    let _other = replace(&setup);
    assert_closes(setup);
}

/// A successor of the backend serves the disk until nobody uses it; none is there, and so the disk waits, but only as long as it is used.
#[test]
fn disk_whose_closing_is_requested_while_store_and_backend_are_lost_is_closed_once_it_is_not_in_use() {
    let mut setup = setup();
    setup.disk.set_in_use(true).unwrap();
    setup.store.cut();
    let Setup { mut disk, store, back, device, machine, .. } = setup;
    back.stop();
    disk.process_events().unwrap();
    machine.detach(&device);
    store.accept();
    machine.wait_for_state(&device.back_path(), XenbusState::Closing);
    // At least one event: it has the store again.
    disk.wait(&mut Vec::new(), Some(BOUND)).unwrap();
    assert!(!disk.is_closed() && machine.state(&device.front_path()) == XenbusState::Connected);
    disk.set_in_use(false).unwrap();
    let started = Instant::now();
    while !disk.is_closed() {
        assert!(started.elapsed() < BOUND);
        let _ = disk.wait(&mut Vec::new(), Some(BOUND / 100));
    }
    assert_eq!(machine.state(&device.front_path()), XenbusState::Closed);
}
