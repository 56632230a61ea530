//! The limit of what a port may send into the bridge.

use std::{fmt, time::Duration};

use event_loop::TokenBucket;

use crate::{Frame, segment};

/// Bytes of the longest frame: an IP packet of 65,535 bytes with its Ethernet header.
const LONGEST: u64 = 65_535 + 14;
/// The burst lasts at least this long: the bridge may sleep a few milliseconds more than it is to.
const BURST_MIN: Duration = Duration::from_millis(10);

/// A rate: a number of bytes in an interval, which is the longest burst after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes in an interval, those of Ethernet headers included and those of preambles and check sequences not.
    pub bytes: u64,
    /// The interval. Zero does not limit.
    pub interval: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {:?}", self.bytes, self.interval)
    }
}

/// A port's budget. Frames are admitted while any byte of it is left, so that the last one may exceed it, which later ones
/// make up for.
#[derive(Debug)]
pub(crate) struct RateLimit {
    bucket: TokenBucket,
}

impl RateLimit {
    /// The limit of a rate from `now` on; `None` for one that does not limit.
    pub(crate) fn new(rate: Rate, now: Duration) -> Option<RateLimit> {
        let nanos = rate.interval.as_nanos();
        if nanos == 0 {
            return None;
        }
        let per_second = u128::from(rate.bytes) * 1_000_000_000 / nanos;
        let per_second = u64::try_from(per_second).unwrap_or(u64::MAX).max(1);
        let shortest = (u128::from(per_second) * BURST_MIN.as_nanos() / 1_000_000_000) as u64;
        Some(RateLimit { bucket: TokenBucket::new(per_second, rate.bytes.max(shortest).max(1), now) })
    }

    /// How many frames may be received, of whatever length, or how long until the next one may be.
    pub(crate) fn admit(&mut self, now: Duration) -> Result<usize, Duration> {
        match self.bucket.wait(1, now).unwrap_or(Duration::MAX) {
            Duration::ZERO => Ok(self.bucket.available(now).div_ceil(LONGEST) as usize),
            wait => Err(wait),
        }
    }

    /// Takes what these frames are on a wire.
    pub(crate) fn spend(&mut self, frames: &[Frame], now: Duration) {
        self.bucket.spend(frames.iter().map(segment::wire_bytes).sum(), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gso, GsoKind, Offload};
    use proptest::prelude::*;

    proptest! {
        /// What is sent in any time is the rate's, but for the burst at its start and one frame.
        #[test]
        fn frames_of_any_length_are_sent_at_the_rate(
            bytes in 1000..100_000u64, interval_ms in 5..200u64, len in 500..1514usize, late_us in 0..2000u64,
        ) {
            let rate = Rate { bytes, interval: Duration::from_millis(interval_ms) };
            let mut limit = RateLimit::new(rate, Duration::ZERO).unwrap();
            let frame = [Frame::from_slice(&vec![0; len])];
            let end = Duration::from_millis(500);
            let mut now = Duration::ZERO;
            let mut sent = 0;
            while now < end {
                match limit.admit(now) {
                    Ok(count) => {
                        prop_assert!(count > 0);
                        limit.spend(&frame, now);
                        sent += len as u64;
                    }
                    Err(wait) => {
                        prop_assert!(wait > Duration::ZERO);
                        now += wait + Duration::from_micros(late_us);
                    }
                }
            }
            let fair = bytes as f64 / (interval_ms as f64 / 1000.0) * end.as_secs_f64();
            let burst = (bytes as f64).max(fair / 50.0);
            prop_assert!(sent as f64 <= fair * 1.01 + burst + len as f64, "{sent} of {fair}");
            prop_assert!(sent as f64 >= fair * 0.98 - len as f64, "{sent} of {fair}");
        }
    }

    #[test]
    fn rate_without_an_interval_does_not_limit() {
        assert!(RateLimit::new(Rate { bytes: 1, interval: Duration::ZERO }, Duration::ZERO).is_none());
    }

    #[test]
    fn an_unsegmented_frame_counts_the_headers_of_its_segments() {
        let mut tcp = vec![0; 54 + 3000];
        tcp[12..15].copy_from_slice(&[8, 0, 0x45]);
        tcp[23] = 6;
        tcp[46] = 0x50;
        let mut frame = Frame::from_slice(&tcp);
        assert_eq!(segment::wire_bytes(&frame), 3054);
        frame.set_offload(Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 1000 }), ..Offload::NONE });
        assert_eq!(segment::wire_bytes(&frame), 3 * 1054);
    }
}
