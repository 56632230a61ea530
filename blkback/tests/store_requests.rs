//! What a device costs in messages to the store, beside few others and beside many.

use blkback::VbdDriver;
use event_loop::Connector;
use ring_abi::DomId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use testkit::block::XVDA;
use testkit::{DriverThread, HookedStream, Machine};
use xenbus::XenbusState;
use xenstore::Client;

/// The most messages by which the backend of one disk is offered: each is a round trip to the store, and some bring several requests.
/// How many events it reads a device for once depends on the threads.
const MESSAGES: u32 = 24;

#[test]
fn device_among_200_costs_as_many_requests_as_one_among_10() {
    let machine = Machine::without_log();
    let dom0 = machine.domain(DomId::DOM0);
    let requests = Arc::new(AtomicU32::new(0));
    let counted = requests.clone();
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let client = Client::new(HookedStream::new(dom0.connect().unwrap(), count));
    let _driver = DriverThread::spawn(client, move || VbdDriver::new(dom0.clone(), dom0));
    let mut attached = 0;
    // The requests for ten more devices.
    let mut attach_ten = || {
        let before = requests.load(Ordering::Relaxed);
        for _ in 0..10 {
            attached += 1;
            let device = machine.attach_disk(DomId(attached), XVDA, "null:1048576");
            machine.wait_for_state(&device.back_path(), XenbusState::InitWait);
        }
        requests.load(Ordering::Relaxed) - before
    };
    let first = attach_ten();
    assert!(first <= 10 * MESSAGES, "{first} messages for ten devices");
    let last = (0..19).map(|_| attach_ten()).last().unwrap_or_default();
    // How many events a device is read for once depends on the threads.
    assert!(last < first * 3 / 2, "{first} requests for the first ten, {last} for the last");
}
