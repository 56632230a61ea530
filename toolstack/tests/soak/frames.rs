//! Frames between two interfaces of this host's network namespace.

use std::time::{Duration, Instant};

use bridge::port::packet::Packet;
use bridge::{Batch, Frame, Frames, Port};

use super::common::BOUND;

/// How often a frame that may be lost is sent.
const RESEND_INTERVAL: Duration = Duration::from_millis(100);
/// Frames that are received at once.
const BATCH: usize = 64;

/// Sends a frame by one interface, and waits until it is received by the other. `token` tells it from others.
pub(crate) fn send(from: &str, to: &str, mac: [u8; 6], token: u64) -> Result<(), String> {
    let open = |name: &str| Packet::open(name).map_err(|error| error.to_string());
    let mut sender = open(from)?;
    let mut receiver = open(to)?;
    let mut frame = vec![token as u8; 90];
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&mac);
    // An EtherType for experiments (RFC 5342).
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..22].copy_from_slice(&token.to_le_bytes());
    let deadline = Instant::now() + BOUND;
    let mut resend = Instant::now();
    let mut batch = Batch::new(BATCH);
    while Instant::now() < deadline {
        if Instant::now() >= resend {
            resend += RESEND_INTERVAL;
            let sent = sender.send(Frames::of(&[Frame::from_slice(&frame)])).and_then(|_| sender.flush());
            sent.map_err(|error| format!("sending by {from}: {error}"))?;
        }
        batch.clear();
        receiver.recv(&mut batch).map_err(|error| format!("receiving by {to}: {error}"))?;
        if batch.frames().iter().any(|received| received.to_vec() == frame) {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_micros(200));
    }
    Err(format!("no frame from {from} to {to} within {BOUND:?}"))
}
