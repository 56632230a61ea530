//! Entries that were given, as `bridge fdb add` gives them, and bounds that change.

use super::{Entry, Fdb, Kind, Learned, Limits, PortId, Recent, Station, Value, WAYS};

/// Most entries that a database can be made for.
const ENTRIES_MAX: usize = 1 << 20;

/// Why an entry cannot be given or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdbError {
    /// As EEXIST of Linux's bridge: also where the entry was learned.
    #[error("there is an entry of this address in this VLAN already")]
    Exists,
    /// ENOENT.
    #[error("there is no such entry at this port")]
    NoSuchEntry,
    /// EINVAL, as the next two.
    #[error("the address is no single station's: it is a group's, or zero")]
    Address,
    /// The port is not in the VLAN.
    #[error("the port is not in this VLAN")]
    Vlan,
    /// The bridge has no address of its own that an entry could be `permanent` for, and learns by itself.
    #[error("an entry that is given is static, sticky or dynamic")]
    Kind,
    /// It is there for as long as the port is.
    #[error("it is a port's own address")]
    Own,
    /// ENOSPC.
    #[error("the forwarding database has no room for it")]
    Full,
}

impl Fdb {
    /// Adds an entry. With `replaces` it takes the place of one of this station, if there is one.
    ///
    /// # Errors
    /// Nothing is changed.
    pub fn add(
        &mut self,
        station: Station,
        (port, kind): (PortId, Kind),
        replaces: bool,
        now_s: u32,
    ) -> Result<(), FdbError> {
        if !station.mac().is_station() {
            return Err(FdbError::Address);
        }
        if !matches!(kind, Kind::Static | Kind::Sticky | Kind::Dynamic) {
            return Err(FdbError::Kind);
        }
        match self.entry(station, now_s).map(|entry| entry.kind) {
            Some(Kind::Own) => return Err(FdbError::Own),
            Some(_) if !replaces => return Err(FdbError::Exists),
            _ => {}
        }
        let key = station.key();
        let place = match self.find(key) {
            // As many learned ones have places beside them.
            None if self.given >= self.buckets.len() * WAYS / 2 => None,
            None => self.free_slot(key, now_s).or_else(|| self.learned_slot(key)),
            place => place,
        };
        let (bucket, way) = place.ok_or(FdbError::Full)?;
        self.fill(bucket, way, key, Value { seen_s: now_s, port: port.0, kind });
        Ok(())
    }

    /// Makes the entry of a station what it was.
    pub(crate) fn restore(&mut self, station: Station, before: Option<Entry>, now_s: u32) {
        let Some((bucket, way)) = self.find(station.key()) else { return };
        match before {
            Some(Entry { port, age_s, kind, .. }) => {
                let value = Value { seen_s: now_s.saturating_sub(age_s), port: port.0, kind };
                self.fill(bucket, way, station.key(), value);
            }
            None => self.clear_slot(bucket, way),
        }
    }

    /// Removes an entry of `port`, also one that was learned.
    ///
    /// # Errors
    /// [`FdbError::NoSuchEntry`], [`FdbError::Own`].
    pub fn delete(&mut self, station: Station, port: PortId, now_s: u32) -> Result<(), FdbError> {
        let entry = self.entry(station, now_s).filter(|entry| entry.port == port);
        match (entry.map(|entry| entry.kind), self.find(station.key())) {
            (Some(Kind::Own), _) => Err(FdbError::Own),
            (Some(_), Some((bucket, way))) => {
                self.clear_slot(bucket, way);
                Ok(())
            }
            _ => Err(FdbError::NoSuchEntry),
        }
    }

    /// Removes the entries for which `is_one` is true of station, port and kind; returns their number.
    pub fn flush(&mut self, is_one: impl Fn(Station, PortId, Kind) -> bool) -> usize {
        self.remove(|station, value| is_one(station, PortId(value.port), value.kind))
    }

    /// Changes the bounds. Entries beyond them stay until they expire; the table grows where that is needed.
    pub fn set_limits(&mut self, limits: Limits) {
        let limits = Limits { entries: limits.entries.clamp(1, ENTRIES_MAX), ..limits };
        let mut grown = Fdb::new(limits, self.seed);
        if grown.buckets.len() > self.buckets.len() {
            for (key, value) in
                self.buckets.iter().flat_map(|bucket| bucket.keys.into_iter().zip(bucket.values))
            {
                if let Some((bucket, way)) = grown.free_slot(key, 0).filter(|_| key != 0) {
                    grown.fill(bucket, way, key, value);
                }
            }
            *self = grown;
        }
        self.limits = limits;
        self.last_seen = Recent::default();
        self.last_used = Recent::default();
    }

    /// Records that the station of an entry that is not learned was seen.
    #[cold]
    pub(super) fn refresh_given(&mut self, bucket: usize, way: usize, port: PortId, now_s: u32) -> Learned {
        let key = self.buckets[bucket].keys[way];
        let old = self.buckets[bucket].values[way];
        if self.is_expired(old, now_s) {
            self.clear_slot(bucket, way);
            return self.insert(key, port, now_s);
        }
        if old.port != port.0 && old.kind.stays() {
            return Learned::Sticky;
        }
        self.buckets[bucket].values[way] = Value { seen_s: now_s, port: port.0, ..old };
        if old.port == port.0 {
            return Learned::Known;
        }
        self.last_used = Recent::default();
        Learned::Moved
    }
}
