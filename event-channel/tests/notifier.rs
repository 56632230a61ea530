//! The notifier on the local hypervisor.

use event_channel::{Channel, Counts, Error, EventChannels, Notifier, WaitChannel};
use event_loop::TokenBucket;
use hypervisor::local::{Domain, Sandbox};
use ring_abi::DomId;
use ring_abi::ring::Notify;
use std::sync::Arc;
use std::time::Duration;

struct Setup {
    notifier: Notifier,
    peer: Box<dyn WaitChannel>,
    _sandbox: (Sandbox, Arc<Domain>, Arc<Domain>),
}

fn setup(tolerance: TokenBucket) -> Setup {
    let sandbox = Sandbox::new().unwrap();
    let dom0 = sandbox.join(DomId(0)).unwrap();
    let guest = sandbox.join(DomId(1)).unwrap();
    let peer = guest.alloc_unbound(DomId(0)).unwrap();
    let channel = dom0.bind_interdomain(DomId(1), peer.port()).unwrap();
    assert!(channel.take().unwrap());
    Setup { notifier: Notifier::with_tolerance(channel, tolerance), peer, _sandbox: (sandbox, dom0, guest) }
}

const NOW: Duration = Duration::from_secs(5);

#[test]
fn notifier_flushed_after_a_batch_sends_one_event() {
    let mut setup = setup(TokenBucket::new(1, 1, NOW));
    assert!(!setup.notifier.flush().unwrap());
    for notify in [Notify::No, Notify::Yes, Notify::Yes, Notify::No] {
        setup.notifier.want(notify);
    }
    assert!(setup.notifier.flush().unwrap());
    assert!(!setup.notifier.flush().unwrap());
    assert!(setup.peer.take().unwrap());
    assert_eq!(setup.notifier.counts(), Counts { sent: 1, merged: 1, ..Counts::default() });
}

#[test]
fn notifier_masks_spurious_events_beyond_its_tolerance_only() {
    let mut setup = setup(TokenBucket::new(10, 3, NOW));
    let mut event = |any: bool, now: Duration| {
        setup.peer.notify().unwrap();
        assert!(setup.notifier.take().unwrap());
        setup.notifier.worked(any, now)
    };
    for _ in 0..100 {
        assert_eq!(event(true, NOW), None);
    }
    for _ in 0..3 {
        assert_eq!(event(false, NOW), None);
    }
    let pause = event(false, NOW).expect("too many");
    assert_eq!(pause, Duration::from_millis(100));
    assert_eq!(event(false, NOW + pause), None);
    assert_eq!(setup.notifier.counts().spurious, 5);
    assert_eq!(setup.notifier.worked(false, NOW), None, "no event was taken, so none was spurious");
}

#[test]
fn notifier_after_the_peer_closed_returns_closed() {
    let mut setup = setup(TokenBucket::new(1, 1, NOW));
    drop(setup.peer);
    assert!(matches!(setup.notifier.take(), Err(Error::Closed)));
    setup.notifier.want(Notify::Yes);
    assert!(matches!(setup.notifier.flush(), Err(Error::Closed)));
}
