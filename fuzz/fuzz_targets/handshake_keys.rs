//! What both ends of a device read of each other's keys in the store, of any names and values: rings within bounds, or an error.
#![no_main]

use blkback::engine::Spec;
use xenbus::Keys;

/// Keys that the handshakes know; others are made of the input.
const KNOWN: [&str; 31] = [
    "ring-ref",
    "ring-ref0",
    "ring-ref1",
    "ring-ref15",
    "ring-page-order",
    "num-ring-pages",
    "event-channel",
    "protocol",
    "feature-persistent",
    "max-ring-page-order",
    "max-ring-pages",
    "sectors",
    "sector-size",
    "physical-sector-size",
    "info",
    "feature-flush-cache",
    "tx-ring-ref",
    "rx-ring-ref",
    "event-channel-tx",
    "request-rx-copy",
    "feature-sg",
    "multi-queue-num-queues",
    "multi-queue-max-queues",
    "queue-0/ring-ref",
    "queue-0/ring-ref0",
    "queue-0/event-channel",
    "queue-1/ring-ref",
    "queue-1/ring-ref0",
    "queue-1/event-channel",
    "params",
    "mode",
];

fn keys(path: &str, pairs: Vec<(u8, String, String)>) -> Keys {
    pairs.into_iter().fold(Keys::new(path), |keys, (known, other, value)| {
        match KNOWN.get(usize::from(known)) {
            Some(key) => keys.with(*key, value),
            None => keys.with(other, value),
        }
    })
}

type Pairs = Vec<(u8, String, String)>;

libfuzzer_sys::fuzz_target!(|input: (Pairs, Pairs)| {
    let own = keys("/local/domain/0/backend/vbd/1/51712", input.0);
    let other = keys("/local/domain/1/device/vbd/51712", input.1);
    if let Ok(negotiated) = blkback::handshake::Negotiated::from_keys(&own, &other) {
        let max = blkback::handshake::MAX_QUEUES as usize;
        assert!((1..=max).contains(&negotiated.queues.len()), "{negotiated:?}");
        assert!(negotiated.queues.iter().all(|queue| (1..=16).contains(&queue.refs.len())), "{negotiated:?}");
    }
    let _ = netback::handshake::Negotiated::from_keys(&own, &other);
    let _ = blkfront::handshake::Negotiated::from_keys(&other);
    let _ = Spec::from_keys(&own);
});
