//! What a file has of its tables, as far as it is remembered, so that of one that has changed a part is written alone.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// Bytes of tables that are remembered, but for two of them.
const REMEMBERED: usize = 4 << 20;

/// Tables as they are in a file, by their offsets.
#[derive(Debug, Default)]
pub(super) struct Written {
    tables: HashMap<u64, Box<[u8]>>,
    /// The offsets, in the order in which they were remembered.
    age: VecDeque<u64>,
}

impl Written {
    /// What the file has of a table.
    pub(super) fn get(&self, offset: u64) -> Option<&[u8]> {
        self.tables.get(&offset).map(|table| &table[..])
    }

    /// The part of a table, in multiples of a unit, that is not in the file as it is here.
    pub(super) fn changed(&self, offset: u64, bytes: &[u8], unit: usize) -> Range<usize> {
        let Some(table) = self.get(offset).filter(|table| table.len() == bytes.len()) else {
            return 0..bytes.len();
        };
        if table == bytes {
            return 0..0;
        }
        let differs = |(here, there): (&[u8], &[u8])| here != there;
        let units = || bytes.chunks(unit).zip(table.chunks(unit));
        let first = units().position(differs).unwrap_or(0);
        let last = units().rposition(differs).unwrap_or(0);
        first * unit..((last + 1) * unit).min(bytes.len())
    }

    /// A table was written.
    pub(super) fn wrote(&mut self, offset: u64, bytes: &[u8]) {
        match self.tables.get_mut(&offset).filter(|table| table.len() == bytes.len()) {
            Some(table) => table.copy_from_slice(bytes),
            None => {
                self.forget(&(offset..offset + 1));
                while self.tables.len() > 1 && (self.tables.len() + 1) * bytes.len() > REMEMBERED {
                    let oldest = self.age.pop_front();
                    oldest.map(|oldest| self.tables.remove(&oldest));
                }
                self.tables.insert(offset, bytes.into());
                self.age.push_back(offset);
            }
        }
    }

    /// Something else was, or may have been, written where these tables begin.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        if self.age.iter().any(|offset| range.contains(offset)) {
            self.age.retain(|offset| !range.contains(offset));
            self.tables.retain(|offset, _| !range.contains(offset));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_that_has_changed_is_told_in_units() {
        let mut written = Written::default();
        let mut table = vec![0; 4096];
        assert_eq!(written.changed(8192, &table, 512), 0..4096, "not known");
        written.wrote(8192, &table);
        assert_eq!(written.changed(8192, &table, 512), 0..0);
        (table[1030], table[2000]) = (1, 1);
        assert_eq!(written.changed(8192, &table, 512), 1024..2048);
        written.wrote(8192, &table);
        table[4095] = 1;
        assert_eq!(written.changed(8192, &table, 512), 3584..4096);
        assert_eq!(written.changed(8192, &table, 65_536), 0..4096);
        written.forget(&(8193..9000));
        assert_eq!(written.changed(8192, &table, 512), 3584..4096);
        written.forget(&(8000..8193));
        assert_eq!(written.changed(8192, &table, 512), 0..4096);
    }

    #[test]
    fn oldest_tables_are_forgotten() {
        let mut written = Written::default();
        let table = vec![1; REMEMBERED / 4];
        (0..6).for_each(|offset| written.wrote(offset, &table));
        let known: Vec<_> = (0..6).filter(|offset| written.get(*offset).is_some()).collect();
        assert_eq!(known, [2, 3, 4, 5]);
        let large = vec![1; REMEMBERED];
        let mut written = Written::default();
        (0..4).for_each(|offset| written.wrote(offset, &large));
        assert!(written.get(2).is_some() && written.get(3).is_some() && written.age.len() == 2);
    }
}
