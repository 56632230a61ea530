//! Notifiers over event channels of the local hypervisor.

use event_channel::{Channel, Error, EventChannels, Notifier, NotifierPair, WaitChannel};
use event_loop::{EventCounts, EventSet, StormGuard, TokenBucket};
use hypervisor::local::{Domain, Sandbox};
use ring_abi::DomId;
use ring_abi::ring::Notify;
use std::sync::Arc;
use std::time::Duration;

/// A backend's domain and a guest.
struct Machine {
    dom0: Arc<Domain>,
    guest: Arc<Domain>,
    _sandbox: Sandbox,
}

impl Machine {
    fn new() -> Machine {
        let sandbox = Sandbox::new().unwrap();
        let dom0 = sandbox.join(DomId(0)).unwrap();
        let guest = sandbox.join(DomId(1)).unwrap();
        Machine { dom0, guest, _sandbox: sandbox }
    }

    /// A notifier that tolerates `burst` spurious events and 10 more a second, and the peer's end.
    fn notifier(&self, burst: u64) -> (Notifier<Box<dyn WaitChannel>>, Box<dyn WaitChannel>) {
        let peer = self.guest.alloc_unbound(DomId(0)).unwrap();
        let channel = self.dom0.bind_interdomain(DomId(1), peer.port()).unwrap();
        assert!(channel.take().unwrap());
        let guard = StormGuard::with_tolerance(TokenBucket::new(10, burst, Duration::ZERO));
        (Notifier::with_guard(channel, guard), peer)
    }
}

const NOW: Duration = Duration::from_secs(5);
const TOKEN: u64 = 7;

#[test]
fn notifier_flushed_after_a_batch_sends_one_event() {
    let machine = Machine::new();
    let (mut notifier, peer) = machine.notifier(1);
    assert!(!notifier.flush().unwrap());
    for notify in [Notify::No, Notify::Yes, Notify::Yes, Notify::No] {
        notifier.want(notify);
    }
    assert!(notifier.flush().unwrap());
    assert!(!notifier.flush().unwrap());
    assert!(peer.take().unwrap());
    assert_eq!(notifier.counts(), EventCounts { sent: 1, suppressed: 3, taken: 0 });
}

#[test]
fn notifier_counts_events_that_led_to_no_work() {
    let machine = Machine::new();
    let (mut notifier, peer) = machine.notifier(1);
    for (worked, pause) in [(true, None), (false, None), (false, Some(Duration::from_millis(100)))] {
        peer.notify().unwrap();
        assert!(notifier.take().unwrap());
        notifier.worked(worked);
        assert_eq!(notifier.pause(NOW), pause);
    }
    assert_eq!((notifier.counts().taken, notifier.spurious()), (3, 2));
    assert_eq!(notifier.pause(NOW), None, "no event was taken, so none was spurious");
}

#[test]
fn notifier_after_the_peer_closed_returns_closed() {
    let machine = Machine::new();
    let (mut notifier, peer) = machine.notifier(1);
    drop(peer);
    assert!(matches!(notifier.take(), Err(Error::Closed)));
    notifier.want(Notify::Yes);
    assert!(matches!(notifier.flush(), Err(Error::Closed)));
}

/// Waits for the set, and takes what made it ready.
fn wait_and_take(notifier: &mut Notifier<impl WaitChannel>, set: &EventSet, timeout: Duration) -> bool {
    let ready = set.wait(Some(timeout)).unwrap();
    notifier.take_events(set).unwrap();
    ready.contains(TOKEN) || ready.contains(EventSet::TIMER)
}

#[test]
fn storm_masks_the_channel_until_the_timer_expires() {
    let machine = Machine::new();
    let (mut notifier, peer) = machine.notifier(1);
    let set = EventSet::new().unwrap();
    notifier.register(&set, TOKEN).unwrap();
    while !notifier.is_masked() {
        peer.notify().unwrap();
        assert!(wait_and_take(&mut notifier, &set, Duration::from_secs(10)));
        notifier.limit_events(&set).unwrap();
    }
    assert_eq!(notifier.spurious(), 2);
    let wakeups = (0..100).filter(|_| {
        peer.notify().unwrap();
        wait_and_take(&mut notifier, &set, Duration::ZERO)
    });
    assert!(wakeups.count() <= 1, "masked");
    assert!(wait_and_take(&mut notifier, &set, Duration::from_secs(10)), "the mask ends");
    assert!(!notifier.is_masked());
    // What was sent meanwhile counts as one event.
    assert_eq!(notifier.counts().taken, 3);
    peer.notify().unwrap();
    assert!(set.wait(Some(Duration::from_secs(10))).unwrap().contains(TOKEN));
    notifier.unregister(&set);
    assert!(!set.wait(Some(Duration::ZERO)).unwrap().contains(TOKEN));
}

#[test]
fn set_of_a_masked_notifier_that_is_removed_does_not_wake() {
    let machine = Machine::new();
    let (mut notifier, peer) = machine.notifier(0);
    let set = EventSet::new().unwrap();
    notifier.register(&set, TOKEN).unwrap();
    peer.notify().unwrap();
    notifier.take_events(&set).unwrap();
    assert!(notifier.limit_events(&set).unwrap().is_some());
    assert!(set.wait(Some(Duration::from_secs(10))).unwrap().contains(EventSet::TIMER));
    notifier.unregister(&set);
    assert!(!set.wait(Some(Duration::ZERO)).unwrap().contains(EventSet::TIMER));
}

#[test]
fn pair_with_two_channels_notifies_each_for_its_ring() {
    let machine = Machine::new();
    let (tx, tx_peer) = machine.notifier(1);
    let (rx, rx_peer) = machine.notifier(1);
    let mut pair = NotifierPair::new(tx, Some(rx));
    pair.want_tx(Notify::Yes);
    pair.flush().unwrap();
    assert!(tx_peer.take().unwrap() && !rx_peer.take().unwrap());
    pair.want_rx(Notify::Yes);
    pair.flush().unwrap();
    assert!(!tx_peer.take().unwrap() && rx_peer.take().unwrap());
    for peer in [&tx_peer, &rx_peer] {
        peer.notify().unwrap();
        assert!(pair.take().unwrap());
        assert!(!pair.take().unwrap());
    }
}

#[test]
fn storm_on_one_channel_of_a_pair_masks_both() {
    let machine = Machine::new();
    let (tx, tx_peer) = machine.notifier(1);
    let (rx, rx_peer) = machine.notifier(1);
    let mut pair = NotifierPair::new(tx, Some(rx));
    let set = EventSet::new().unwrap();
    pair.register(&set, TOKEN).unwrap();
    // Work in either ring excuses the events of both.
    for _ in 0..10 {
        rx_peer.notify().unwrap();
        assert!(pair.take_events(&set).unwrap());
        pair.worked(true);
        assert_eq!(pair.limit_events(&set).unwrap(), None);
    }
    while !pair.is_masked() {
        rx_peer.notify().unwrap();
        assert!(pair.take_events(&set).unwrap());
        pair.limit_events(&set).unwrap();
    }
    tx_peer.notify().unwrap();
    rx_peer.notify().unwrap();
    assert!(!pair.take_events(&set).unwrap() && !set.wait(Some(Duration::ZERO)).unwrap().contains(TOKEN));
    assert!(set.wait(Some(Duration::from_secs(10))).unwrap().contains(EventSet::TIMER));
    assert!(pair.take_events(&set).unwrap() && !pair.is_masked());
    assert!(!set.wait(Some(Duration::ZERO)).unwrap().contains(EventSet::TIMER));
}
