//! Limits in bytes and packets a second, of what a port may send into the bridge or is sent.

use std::{fmt, time::Duration};

use event_loop::TokenBucket;

use crate::{Frame, Frames, segment};

/// Bytes of the longest frame: an IP packet of 65,535 bytes with its Ethernet header.
const LONGEST: u64 = 65_535 + 14;
/// Segments of the longest frame, cut as short as a guest may ask for.
const MOST_SEGMENTS: u64 = LONGEST / segment::MIN_SIZE as u64;
/// The burst lasts at least this long: the bridge may sleep a few milliseconds more than it is to.
const BURST_MIN: Duration = Duration::from_millis(10);
/// What buckets count: thousandths, so that a rate of a few packets is exact.
const UNIT: u64 = 1000;

/// A rate: a number of bytes or packets in an interval, which is the longest burst after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Packets, or bytes: those of Ethernet headers included and those of preambles and check sequences not.
    pub amount: u64,
    /// The interval. Zero does not limit.
    pub interval: Duration,
}

/// Limits that hold at once. A frame that is to be cut into segments counts as these: as many packets, and each with its headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// The limit in bytes; `None`: any.
    pub bytes: Option<Rate>,
    /// The limit in packets; `None`: any.
    pub packets: Option<Rate>,
}

impl RateLimits {
    /// The same limits but of zero intervals, which do not limit.
    fn in_force(self) -> RateLimits {
        let limits = |rate: Option<Rate>| rate.filter(|rate| !rate.interval.is_zero());
        RateLimits { bytes: limits(self.bytes), packets: limits(self.packets) }
    }
}

impl fmt::Display for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RateLimits { bytes, packets } = self.in_force();
        let rates = [(bytes, "bytes"), (packets, "packets")];
        let texts = rates.map(|(rate, unit)| {
            rate.map(|Rate { amount, interval }| format!("{amount} {unit} in {interval:?}"))
        });
        match texts {
            [None, None] => f.write_str("none"),
            texts => f.write_str(&texts.into_iter().flatten().collect::<Vec<_>>().join(", ")),
        }
    }
}

impl Rate {
    /// What accrues in a time.
    pub(crate) fn of(self, time: Duration) -> u64 {
        let nanos = self.interval.as_nanos().max(1);
        let amount = u128::from(self.amount).saturating_mul(time.as_nanos()) / nanos;
        u64::try_from(amount).unwrap_or(u64::MAX)
    }

    fn bucket(self, now: Duration) -> TokenBucket {
        let nanos = self.interval.as_nanos().max(1);
        let per_second = u128::from(self.amount) * u128::from(UNIT) * 1_000_000_000 / nanos;
        let per_second = u64::try_from(per_second).unwrap_or(u64::MAX).max(1);
        let burst = self.amount.max(self.of(BURST_MIN)).max(1).saturating_mul(UNIT);
        TokenBucket::new(per_second, burst, now)
    }
}

/// A budget. Frames are admitted while a byte and a packet of it are left, so that the last one may exceed it, which later ones make up for.
#[derive(Debug)]
pub(crate) struct RateLimit {
    bytes: Option<TokenBucket>,
    packets: Option<TokenBucket>,
}

impl RateLimit {
    /// The limit of these rates from `now` on; `None` where they do not limit. One that takes the place of another starts with
    /// nothing saved up.
    pub(crate) fn new(limits: RateLimits, replaces: bool, now: Duration) -> Option<RateLimit> {
        let RateLimits { bytes, packets } = limits.in_force();
        let bucket = |rate: Rate| {
            let mut bucket = rate.bucket(now);
            if replaces {
                let saved = bucket.available(now);
                bucket.spend(saved, now);
            }
            bucket
        };
        let limit = RateLimit { bytes: bytes.map(bucket), packets: packets.map(bucket) };
        (limit.bytes.is_some() || limit.packets.is_some()).then_some(limit)
    }

    /// How many frames may pass, of whatever length, or how long until the next one may.
    #[inline]
    pub(crate) fn admit(&mut self, now: Duration) -> Result<usize, Duration> {
        let available = |bucket: &mut Option<TokenBucket>| {
            bucket.as_mut().map_or(u64::MAX, |bucket| bucket.available(now))
        };
        let bytes = available(&mut self.bytes);
        let packets = available(&mut self.packets);
        if bytes < UNIT || packets < UNIT {
            return Err(self.wait(now));
        }
        // So many fit whatever they are.
        let frames = bytes.div_ceil(UNIT * LONGEST).min(packets.div_ceil(UNIT * MOST_SEGMENTS));
        Ok(usize::try_from(frames).unwrap_or(usize::MAX))
    }

    /// How long until the next frame may pass.
    fn wait(&mut self, now: Duration) -> Duration {
        let of = |bucket: &mut Option<TokenBucket>| {
            bucket.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(UNIT, now).unwrap_or(Duration::MAX))
        };
        of(&mut self.bytes).max(of(&mut self.packets))
    }

    /// How many of these frames, from the first one on, may pass now.
    #[inline]
    pub(crate) fn count(&mut self, frames: Frames<'_>, now: Duration) -> usize {
        let all = frames.len();
        match self.admit(now) {
            Ok(surely) if surely >= all => all,
            Ok(_) => self.count_each(frames, now),
            Err(_) => 0,
        }
    }

    fn count_each(&mut self, frames: Frames<'_>, now: Duration) -> usize {
        let left = |bucket: &mut Option<TokenBucket>| {
            bucket.as_mut().map_or(u64::MAX, |bucket| bucket.available(now))
        };
        let mut bytes = left(&mut self.bytes);
        let mut packets = left(&mut self.packets);
        let admitted = frames.iter().take_while(|frame: &&Frame| {
            let admits = bytes >= UNIT && packets >= UNIT;
            let (of_frame, in_packets) = segment::on_wire(frame);
            bytes = bytes.saturating_sub(UNIT * of_frame);
            packets = packets.saturating_sub(UNIT * in_packets);
            admits
        });
        admitted.count()
    }

    /// Takes what these frames are on a wire.
    #[inline]
    pub(crate) fn spend(&mut self, frames: Frames<'_>, now: Duration) {
        let mut bytes = 0;
        let mut packets = 0;
        for frame in frames.iter() {
            let (of_frame, in_packets) = segment::on_wire(frame);
            bytes += of_frame;
            packets += in_packets;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(UNIT * bytes, now);
        }
        if let Some(bucket) = &mut self.packets {
            bucket.spend(UNIT * packets, now);
        }
    }
}

#[cfg(test)]
mod tests;
