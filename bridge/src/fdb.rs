//! The forwarding database: the port from which each address was last seen.
//!
//! The table has a fixed size, so that a flood of invented source addresses can neither grow nor slow it: an address
//! can be only in two buckets of eight slots, chosen by a seeded hash. One port may fill only a part of the table
//! (`fdb_max_learned` of Linux's bridge), and where several have filled it, a new address takes the place of one of the port
//! that has most: floods do not prevent other ports' addresses from being learned.
//!
//! A port's own address and the entries that were given (`bridge fdb add`) are known before the port has sent anything. They take no
//! part in the limits; whether they expire, and whether another port can learn them, says their [`Kind`].
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

mod entry;
mod given;

use entry::Value;

pub use crate::mac::{Mac, Station};
pub use entry::{Entry, Kind};
pub use given::FdbError;

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
    /// The station is another port's, and does not move.
    Sticky,
    /// The port has all entries that it may have, or no port has more of them.
    Full,
}

/// Bounds of a forwarding database.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most learned entries.
    pub entries: usize,
    /// Most learned entries of one port.
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

/// Eight entries: the keys in one cache line, the values in the next.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Bucket {
    keys: [u64; WAYS],
    values: [Value; WAYS],
}

impl Bucket {
    const EMPTY: Bucket =
        Bucket { keys: [0; WAYS], values: [Value { seen_s: 0, port: 0, kind: Kind::Learned }; WAYS] };

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
    /// Learned entries.
    learned: usize,
    /// All others.
    given: usize,
    /// Learned entries of each port.
    per_port: Vec<u32>,
    /// The bucket to look at first for an entry to be replaced.
    hand: usize,
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
            learned: 0,
            given: 0,
            per_port: Vec::new(),
            hand: 0,
            last_seen: Recent::default(),
            last_used: Recent::default(),
        }
    }

    /// Number of entries, with expired ones until the next [`Fdb::sweep`].
    pub fn len(&self) -> usize {
        self.learned + self.given
    }

    /// Number of learned entries (`fdb_n_learned` of Linux's bridge), with expired ones until the next [`Fdb::sweep`].
    pub fn learned(&self) -> usize {
        self.learned
    }

    /// Its bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

    /// Makes `station` an own address of `port`, unless it stays at another one for good; `false` if it does, or if there is no
    /// place for it.
    pub fn claim(&mut self, station: Station, port: PortId) -> bool {
        let key = station.key();
        let place = self.find(key).or_else(|| self.free_slot(key, 0)).or_else(|| self.learned_slot(key));
        let Some((bucket, way)) = place else { return false };
        let held = self.buckets[bucket].values[way];
        if self.buckets[bucket].keys[way] == key && !held.kind.expires() {
            return held.port == port.0;
        }
        self.fill(bucket, way, key, Value { seen_s: 0, port: port.0, kind: Kind::Own });
        true
    }

    /// The port at which `station` is and stays.
    pub fn owner(&self, station: Station, now_s: u32) -> Option<PortId> {
        self.entry(station, now_s).filter(|entry| entry.kind.stays()).map(|entry| entry.port)
    }

    /// Removes the entries of `port`.
    pub fn forget(&mut self, port: PortId) {
        self.remove(|_, value| value.port == port.0);
    }

    /// Removes expired entries. Their slots are reused without it, but they count towards the limits until then.
    pub fn sweep(&mut self, now_s: u32) {
        let age_s = self.limits.age_s;
        self.remove(|_, value| value.has_expired(age_s, now_s));
    }

    /// The entries that have not expired, in no particular order.
    pub fn entries(&self, now_s: u32) -> impl Iterator<Item = Entry> + '_ {
        let slots = self.buckets.iter().flat_map(|bucket| bucket.keys.iter().zip(&bucket.values));
        slots
            .filter(move |(key, value)| **key != 0 && !self.is_expired(**value, now_s))
            .map(move |(key, value)| Entry::new(*key, *value, now_s))
    }

    /// The entry of a station, unless it has expired.
    pub fn entry(&self, station: Station, now_s: u32) -> Option<Entry> {
        let (bucket, way) = self.find(station.key())?;
        let value = self.buckets[bucket].values[way];
        (!self.is_expired(value, now_s)).then(|| Entry::new(station.key(), value, now_s))
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
        if !matches!(learned, Learned::Full | Learned::Sticky) {
            self.last_seen = Recent { key: station.key(), now_s, port: port.0 };
        }
        learned
    }

    fn refresh(&mut self, bucket: usize, way: usize, port: PortId, now_s: u32) -> Learned {
        let old = self.buckets[bucket].values[way];
        if old.kind != Kind::Learned {
            return self.refresh_given(bucket, way, port, now_s);
        }
        let expired = self.is_expired(old, now_s);
        if old.port != port.0 {
            if self.count(port.0) >= self.limits.entries_per_port {
                return Learned::Full;
            }
            *self.count_mut(old.port) -= 1;
            *self.count_mut(port.0) += 1;
            self.last_used = Recent::default();
        }
        self.buckets[bucket].values[way] = Value { seen_s: now_s, port: port.0, kind: Kind::Learned };
        match (expired, old.port == port.0) {
            (true, _) => Learned::New,
            (false, true) => Learned::Known,
            (false, false) => Learned::Moved,
        }
    }

    fn insert(&mut self, key: u64, port: PortId, now_s: u32) -> Learned {
        if self.count(port.0) >= self.limits.entries_per_port {
            return Learned::Full;
        }
        if self.learned >= self.limits.entries && !self.evict_of_largest(port) {
            return Learned::Full;
        }
        let place = self.free_slot(key, now_s).or_else(|| {
            let (bucket, way) = self.learned_slot(key)?;
            let holder = self.buckets[bucket].values[way].port;
            self.has_far_more(holder, port).then_some((bucket, way))
        });
        let Some((bucket, way)) = place else { return Learned::Full };
        self.fill(bucket, way, key, Value { seen_s: now_s, port: port.0, kind: Kind::Learned });
        Learned::New
    }

    /// Removes a learned entry of the port that has most of them; `false` if `newcomer` has as many.
    fn evict_of_largest(&mut self, newcomer: PortId) -> bool {
        let ports = (0..=u16::MAX).take(self.per_port.len());
        let largest = ports.max_by_key(|port| self.count(*port));
        let Some(largest) = largest.filter(|largest| self.has_far_more(*largest, newcomer)) else {
            return false;
        };
        for _ in 0..self.buckets.len() {
            let bucket = self.hand;
            let Bucket { keys, values } = &self.buckets[bucket];
            let is_its = |way: &usize| {
                keys[*way] != 0 && values[*way].kind == Kind::Learned && values[*way].port == largest
            };
            if let Some(way) = (0..WAYS).find(is_its) {
                self.clear_slot(bucket, way);
                return true;
            }
            self.hand = (bucket + 1) % self.buckets.len();
        }
        false
    }

    /// Whether a port has more entries than another would have with one more.
    fn has_far_more(&self, port: u16, than: PortId) -> bool {
        port != than.0 && self.count(port) > self.count(than.0) + 1
    }

    /// Of the learned entries in the key's two buckets one of the port that has most in the table.
    fn learned_slot(&self, key: u64) -> Option<(usize, usize)> {
        let (first, second) = self.buckets_of(key);
        let slots = [first, second].into_iter().flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)));
        let value = |(bucket, way): (usize, usize)| self.buckets[bucket].values[way];
        let learned = slots.filter(|slot| value(*slot).kind == Kind::Learned);
        learned.max_by_key(|slot| self.count(value(*slot).port))
    }

    /// Puts an entry into a slot, in the place of what is there.
    fn fill(&mut self, bucket: usize, way: usize, key: u64, value: Value) {
        self.clear_slot(bucket, way);
        self.buckets[bucket].keys[way] = key;
        self.buckets[bucket].values[way] = value;
        if value.kind == Kind::Learned {
            self.learned += 1;
            *self.count_mut(value.port) += 1;
        } else {
            self.given += 1;
        }
    }

    /// Empties a slot, which may be empty.
    fn clear_slot(&mut self, bucket: usize, way: usize) {
        self.last_seen = Recent::default();
        self.last_used = Recent::default();
        if std::mem::take(&mut self.buckets[bucket].keys[way]) == 0 {
            return;
        }
        let Value { port, kind, .. } = self.buckets[bucket].values[way];
        if kind == Kind::Learned {
            self.learned -= 1;
            *self.count_mut(port) -= 1;
        } else {
            self.given -= 1;
        }
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
        value.has_expired(self.limits.age_s, now_s)
    }

    /// Learned entries of a port.
    fn count(&self, port: u16) -> usize {
        self.per_port.get(usize::from(port)).map_or(0, |count| *count as usize)
    }

    fn count_mut(&mut self, port: u16) -> &mut u32 {
        let port = usize::from(port);
        if port >= self.per_port.len() {
            self.per_port.resize(port + 1, 0);
        }
        &mut self.per_port[port]
    }

    /// Removes entries; returns their number.
    fn remove(&mut self, is_one: impl Fn(Station, &Value) -> bool) -> usize {
        self.last_seen = Recent::default();
        self.last_used = Recent::default();
        let before = self.len();
        for Bucket { keys, values } in &mut self.buckets {
            for (key, value) in keys.iter_mut().zip(values) {
                if *key == 0 || !is_one(Station::from_key(*key), value) {
                    continue;
                }
                *key = 0;
                if value.kind == Kind::Learned {
                    self.learned -= 1;
                    self.per_port[usize::from(value.port)] -= 1;
                } else {
                    self.given -= 1;
                }
            }
        }
        before - self.len()
    }
}

#[cfg(test)]
mod given_tests;
#[cfg(test)]
mod tests;
