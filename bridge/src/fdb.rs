//! The forwarding database: the port from which each address was last seen.
//!
//! The table has a fixed size, so that a flood of invented source addresses can neither grow nor slow it: an address
//! can be only in two buckets of eight slots, chosen by a seeded hash. One port may fill only a part of the table, so
//! that its flood does not prevent other ports' addresses from being learned.
//!
//! Time is an argument, in seconds; an entry that was not seen for the ageing time has expired and is not used.
//!
//! ```
//! use bridge::fdb::{Fdb, Learned, Limits, Mac, PortId, Station};
//!
//! let mut fdb = Fdb::new(Limits::default(), 0x5eed);
//! let station = Station::new(Mac::new([2, 0, 0, 0, 0, 1]), 0);
//! assert_eq!(fdb.learn(station, PortId(3), 0), Learned::New);
//! assert_eq!(fdb.lookup(station, 299), Some(PortId(3)));
//! assert_eq!(fdb.lookup(station, 300), None);
//! ```

pub use crate::mac::{Mac, Station};

const WAYS: usize = 8;

/// A port's number in a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// The outcome of [`Fdb::learn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The entry existed and was refreshed.
    Known,
    /// The entry was added, or had expired.
    New,
    /// The station was last seen at another port.
    Moved,
    /// The address is no single station's: a group's, or zero.
    NotStation,
    /// Both buckets, the table or the port's share are full.
    TooManyFragments,
}

/// Bounds of a forwarding database.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most entries.
    pub entries: usize,
    /// Most entries of one port.
    pub entries_per_port: usize,
    /// Ageing time: seconds without a frame after which an entry expires.
    pub age_s: u32,
}

impl Default for Limits {
    /// 8192 entries, at most half of them of one port; 300 s as in Linux.
    fn default() -> Limits {
        Limits { entries: 8192, entries_per_port: 4096, age_s: 300 }
    }
}

/// One entry of the table, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The address.
    pub station: Station,
    /// The port at which it was last seen.
    pub port: PortId,
    /// Seconds since then.
    pub age_s: u32,
}

/// Eight entries: the keys in one cache line, the values in the next.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Bucket {
    keys: [u64; WAYS],
    values: [Value; WAYS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Value {
    seen_s: u32,
    port: u16,
}

impl Bucket {
    const EMPTY: Bucket = Bucket { keys: [0; WAYS], values: [Value { seen_s: 0, port: 0 }; WAYS] };

    #[inline]
    fn find(&self, key: u64) -> Option<usize> {
        let mut hits = 0u32;
        for way in 0..WAYS {
            hits |= u32::from(self.keys[way] == key) << way;
        }
        (hits != 0).then_some(hits.trailing_zeros() as usize)
    }
}

/// The last result, valid until the table changes.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    key: u64,
    now_s: u32,
    port: u16,
}

/// The forwarding database.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    seed: u64,
    limits: Limits,
    len: usize,
    per_port: Vec<usize>,
    /// The last station learned.
    last_seen: Recent,
    /// The last station looked up.
    last_used: Recent,
}

impl Fdb {
    /// Makes an empty database. `seed` must not be guessable by the stations that are learned.
    pub fn new(limits: Limits, seed: u64) -> Fdb {
        let slots = limits.entries.clamp(WAYS, 1 << 20) * 2;
        let buckets = vec![Bucket::EMPTY; (slots / WAYS).next_power_of_two()].into_boxed_slice();
        Fdb {
            buckets,
            seed: seed | 1,
            limits,
            len: 0,
            per_port: Vec::new(),
            last_seen: Recent::default(),
            last_used: Recent::default(),
        }
    }

    /// Number of entries, with expired ones until the next [`Fdb::sweep`].
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Records that `station` was seen at `port` at `now_s`.
    #[inline]
    pub fn learn(&mut self, station: Station, port: PortId, now_s: u32) -> Learned {
        let Recent { key, now_s: then_s, port: known } = self.last_seen;
        if (key, then_s, known) == (station.key(), now_s, port.0) {
            return Learned::Known;
        }
        self.learn_uncached(station, port, now_s)
    }

    /// The port at which `station` was last seen, unless the entry has expired at `now_s`.
    #[inline]
    pub fn lookup(&mut self, station: Station, now_s: u32) -> Option<PortId> {
        if (self.last_used.key, self.last_used.now_s) == (station.key(), now_s) {
            return Some(PortId(self.last_used.port));
        }
        let (bucket, way) = self.find(station.key())?;
        let value = self.buckets[bucket].values[way];
        if self.is_expired(value, now_s) {
            return None;
        }
        self.last_used = Recent { key: station.key(), now_s, port: value.port };
        Some(PortId(value.port))
    }

    /// Removes the entries of `port`.
    pub fn forget(&mut self, port: PortId) {
        self.retain(|value| value.port != port.0);
    }

    /// Removes expired entries. Their slots are reused without it, but they count towards the limits until then.
    pub fn sweep(&mut self, now_s: u32) {
        let age_s = self.limits.age_s;
        self.retain(|value| now_s.saturating_sub(value.seen_s) < age_s);
    }

    /// The entries that have not expired, in no particular order.
    pub fn entries(&self, now_s: u32) -> impl Iterator<Item = Entry> + '_ {
        let slots = self.buckets.iter().flat_map(|bucket| bucket.keys.iter().zip(&bucket.values));
        slots.filter(move |(key, value)| **key != 0 && !self.is_expired(**value, now_s)).map(
            move |(key, value)| Entry {
                station: Station::from_key(*key),
                port: PortId(value.port),
                age_s: now_s.saturating_sub(value.seen_s),
            },
        )
    }

    #[inline(never)]
    fn learn_uncached(&mut self, station: Station, port: PortId, now_s: u32) -> Learned {
        if station.mac().is_group() || station.mac() == Mac::ZERO {
            return Learned::NotStation;
        }
        let learned = match self.find(station.key()) {
            Some((bucket, way)) => self.refresh(bucket, way, port, now_s),
            None => self.insert(station.key(), port, now_s),
        };
        if learned != Learned::TooManyFragments {
            self.last_seen = Recent { key: station.key(), now_s, port: port.0 };
        }
        learned
    }

    fn refresh(&mut self, bucket: usize, way: usize, port: PortId, now_s: u32) -> Learned {
        let old = self.buckets[bucket].values[way];
        let expired = self.is_expired(old, now_s);
        if old.port != port.0 {
            if self.count(port.0) >= self.limits.entries_per_port {
                return Learned::TooManyFragments;
            }
            *self.count_mut(old.port) -= 1;
            *self.count_mut(port.0) += 1;
            self.last_used = Recent::default();
        }
        self.buckets[bucket].values[way] = Value { seen_s: now_s, port: port.0 };
        match (expired, old.port == port.0) {
            (true, _) => Learned::New,
            (false, true) => Learned::Known,
            (false, false) => Learned::Moved,
        }
    }

    fn insert(&mut self, key: u64, port: PortId, now_s: u32) -> Learned {
        if self.len >= self.limits.entries || self.count(port.0) >= self.limits.entries_per_port {
            return Learned::TooManyFragments;
        }
        let Some((bucket, way)) = self.free_slot(key, now_s) else {
            return Learned::TooManyFragments;
        };
        if self.buckets[bucket].keys[way] != 0 {
            *self.count_mut(self.buckets[bucket].values[way].port) -= 1;
            self.len -= 1;
        }
        self.buckets[bucket].keys[way] = key;
        self.buckets[bucket].values[way] = Value { seen_s: now_s, port: port.0 };
        *self.count_mut(port.0) += 1;
        self.len += 1;
        self.last_seen = Recent::default();
        self.last_used = Recent::default();
        Learned::New
    }

    /// An empty or expired slot in the emptier of the key's two buckets.
    fn free_slot(&self, key: u64, now_s: u32) -> Option<(usize, usize)> {
        let free = |bucket: usize| {
            let Bucket { keys, values } = &self.buckets[bucket];
            let mut ways = (0..WAYS)
                .filter(move |&way| keys[way] == 0 || self.is_expired(values[way], now_s))
                .peekable();
            (ways.peek().copied(), ways.count(), bucket)
        };
        let (first, second) = self.buckets_of(key);
        let a = free(first);
        let b = free(second);
        let (way, _, bucket) = if b.1 > a.1 { b } else { a };
        way.map(|way| (bucket, way))
    }

    #[inline]
    fn find(&self, key: u64) -> Option<(usize, usize)> {
        let (first, second) = self.buckets_of(key);
        if let Some(way) = self.buckets[first].find(key) {
            return Some((first, way));
        }
        self.buckets[second].find(key).map(|way| (second, way))
    }

    /// The two buckets that a key can be in, by the folded product of wyhash.
    #[inline]
    fn buckets_of(&self, key: u64) -> (usize, usize) {
        let product = u128::from(key ^ self.seed) * u128::from(self.seed ^ 0x9e37_79b9_7f4a_7c15);
        let hash = product as u64 ^ (product >> 64) as u64;
        let mask = self.buckets.len() - 1;
        (hash as usize & mask, (hash >> 32) as usize & mask)
    }

    #[inline]
    fn is_expired(&self, value: Value, now_s: u32) -> bool {
        now_s.saturating_sub(value.seen_s) >= self.limits.age_s
    }

    fn count(&self, port: u16) -> usize {
        self.per_port.get(usize::from(port)).copied().unwrap_or(0)
    }

    fn count_mut(&mut self, port: u16) -> &mut usize {
        let port = usize::from(port);
        if port >= self.per_port.len() {
            self.per_port.resize(port + 1, 0);
        }
        &mut self.per_port[port]
    }

    fn retain(&mut self, keep: impl Fn(&Value) -> bool) {
        self.last_seen = Recent::default();
        self.last_used = Recent::default();
        for Bucket { keys, values } in &mut self.buckets {
            for (key, value) in keys.iter_mut().zip(values) {
                if *key != 0 && !keep(value) {
                    *key = 0;
                    self.len -= 1;
                    self.per_port[usize::from(value.port)] -= 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
