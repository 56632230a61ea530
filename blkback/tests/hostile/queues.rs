//! Attacks on devices with several queues.

use crate::{Platform, assert_others_served, open};
use ring_abi::blkif::{OP_READ, Status, key};
use ring_abi::testing::words;
use testkit::FrontendDevice;
use testkit::block::RawFrontend;
use xenbus::XenbusState;

/// The queues that the backend offers, two or more.
fn offered_queues(device: &FrontendDevice) -> u32 {
    device.wait_for_backend(XenbusState::InitWait);
    let offered =
        device.end().other_keys(&mut device.store()).unwrap().need(key::MULTI_QUEUE_MAX_QUEUES).unwrap();
    assert!(offered >= 2, "{offered} queues are offered");
    offered
}

pub(crate) fn invalid_keys_of_queues_are_named_and_may_be_corrected(platform: &mut dyn Platform) {
    let device = platform.attacked();
    let above = offered_queues(&device) + 1;
    let queues: Vec<RawFrontend> = (0..2).map(|_| RawFrontend::new(device.clone())).collect();
    let first = queues[0].memory.refs()[0].0.to_string();
    let above = above.to_string();
    let expected_count = "multi-queue-num-queues: found";
    for (name, value, words) in [
        (key::MULTI_QUEUE_NUM_QUEUES, Some("0"), expected_count),
        (key::MULTI_QUEUE_NUM_QUEUES, Some(above.as_str()), expected_count),
        (key::MULTI_QUEUE_NUM_QUEUES, Some("4294967295"), expected_count),
        ("queue-1/ring-ref", None, "queue-1/ring-ref: missing"),
        ("queue-1/event-channel", None, "queue-1/event-channel: missing"),
        ("queue-0/ring-ref", Some("x"), "queue-0/ring-ref: found \"x\""),
        ("queue-1/ring-ref", Some(first.as_str()), "a page that is granted for no other ring"),
        ("queue-1/ring-ref", Some("4294967295"), "mapping the ring"),
        (key::RING_PAGE_ORDER, Some("5"), "ring-page-order: found \"5\""),
    ] {
        device.switch(XenbusState::Initialising);
        device.wait_for_backend(XenbusState::InitWait);
        device.set(key::MULTI_QUEUE_NUM_QUEUES, 2);
        for (number, queue) in queues.iter().enumerate() {
            queue.publish(&format!("queue-{number}/"));
        }
        match value {
            Some(value) => device.set(name, value),
            None => device.remove(name),
        }
        device.switch(XenbusState::Initialised);
        platform.assert_closed(words);
        device.switch(XenbusState::Closed);
        device.wait_for_backend(XenbusState::Closed);
        if name == key::RING_PAGE_ORDER {
            device.remove(name);
        }
        // Whatever another frontend has left.
        open(&device).close().unwrap();
    }
    assert_others_served(platform);
}

pub(crate) fn fault_on_one_of_several_rings_closes_the_device(platform: &mut dyn Platform) {
    let device = platform.attacked();
    let count = offered_queues(&device) as usize;
    let mut queues: Vec<RawFrontend> = RawFrontend::connect_queues(&device, key::PROTOCOL_X86_64, count);
    for queue in &mut queues {
        let read = queue.io(OP_READ, 1, 0, &[0]);
        queue.send(&[read]);
        assert_eq!(queue.receive(1)[0].status, Status::OKAY);
    }
    let last = &queues[count - 1];
    words(&last.memory).store32(0, 1000);
    last.channel.notify().unwrap();
    platform.assert_closed("producer index 1000");
    assert_others_served(platform);
    // The threads of the other rings have ended, too.
    let mut queues = queues.into_iter();
    let first = queues.next().unwrap();
    device.switch(XenbusState::Closed);
    device.wait_for_backend(XenbusState::Closed);
    drop(queues);
    platform.assert_unmapped(first);
}
