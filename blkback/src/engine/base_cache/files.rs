//! The files that are cached, each with the number that its blocks' keys have. A file that is forgotten gets another number: what was
//! found, or is still being read, by the old one is nobody's any more.

use super::table::MAX_FILES;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What tells one file from all others: device and inode, or the number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileId {
    /// A regular file.
    File {
        /// The file system's device number (`st_dev`).
        device: u64,
        /// The inode number (`st_ino`).
        inode: u64,
    },
    /// A block device, by its own number (`st_rdev`).
    Device(u64),
}

/// The number of a file now; 0 while it is not cached.
pub(super) type Number = Arc<AtomicU32>;

#[derive(Debug, Default)]
struct Entry {
    number: Number,
    /// Those who have it open.
    users: usize,
    /// Those who want it not to be cached.
    bypassed: usize,
}

/// The files.
#[derive(Debug, Default)]
pub(super) struct Files {
    entries: HashMap<FileId, Entry>,
    /// The number that was given last.
    last: u32,
}

impl Files {
    /// Adds a user of a file.
    pub(super) fn join(&mut self, id: FileId) -> Number {
        self.entry(id, |entry| entry.users += 1);
        self.entries[&id].number.clone()
    }

    /// Removes a user of a file. Returns the number whose blocks are to be forgotten, as nobody uses the file any more.
    pub(super) fn leave(&mut self, id: FileId) -> Option<u32> {
        self.entry(id, |entry| entry.users -= 1)
    }

    /// Has a file not be cached. Returns the number whose blocks are to be forgotten.
    pub(super) fn bypass(&mut self, id: FileId) -> Option<u32> {
        self.entry(id, |entry| entry.bypassed += 1)
    }

    /// Ends one [`Files::bypass`].
    pub(super) fn end_bypass(&mut self, id: FileId) {
        self.entry(id, |entry| entry.bypassed -= 1);
    }

    /// Changes who has a file; returns its number if that is no longer to be used.
    fn entry(&mut self, id: FileId, change: impl FnOnce(&mut Entry)) -> Option<u32> {
        let entry = self.entries.entry(id).or_default();
        change(entry);
        let is_cached = entry.users > 0 && entry.bypassed == 0;
        let number = entry.number.load(Ordering::SeqCst);
        if is_cached && number == 0 && self.last < MAX_FILES - 1 {
            self.last += 1;
            entry.number.store(self.last, Ordering::SeqCst);
        } else if !is_cached {
            entry.number.store(0, Ordering::SeqCst);
        }
        if entry.users == 0 && entry.bypassed == 0 {
            self.entries.remove(&id);
        }
        (!is_cached && number > 0).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId::File { device: 1, inode: 2 };

    fn number(number: &Number) -> u32 {
        number.load(Ordering::SeqCst)
    }

    #[test]
    fn file_has_one_number_while_it_is_used_and_another_one_after_that() {
        let mut files = Files::default();
        let (one, other) = (files.join(FILE), files.join(FILE));
        let stranger = files.join(FileId::Device(2));
        assert_eq!([number(&one), number(&other), number(&stranger)], [1, 1, 2]);
        assert_eq!((files.leave(FILE), number(&one)), (None, 1));
        assert_eq!((files.leave(FILE), number(&one)), (Some(1), 0));
        assert_eq!(number(&files.join(FILE)), 3);
        files.leave(FILE);
        files.leave(FileId::Device(2));
        assert!(files.entries.is_empty());
    }

    #[test]
    fn file_that_is_bypassed_has_no_number_until_all_have_ended_that() {
        let mut files = Files::default();
        assert_eq!(files.bypass(FILE), None);
        let used = files.join(FILE);
        assert_eq!((number(&used), files.bypass(FILE)), (0, None));
        files.end_bypass(FILE);
        assert_eq!(number(&used), 0);
        files.end_bypass(FILE);
        assert_eq!(number(&used), 1);
        assert_eq!((files.bypass(FILE), number(&used)), (Some(1), 0));
        files.end_bypass(FILE);
        assert_eq!(number(&used), 2);
        files.leave(FILE);
        assert!(files.entries.is_empty());
    }

    #[test]
    fn file_that_comes_when_all_numbers_were_given_is_not_cached() {
        let mut files = Files { last: MAX_FILES - 2, ..Files::default() };
        assert_eq!(number(&files.join(FILE)), MAX_FILES - 1);
        assert_eq!(number(&files.join(FileId::Device(1))), 0);
    }
}
