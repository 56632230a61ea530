//! What an image's file has of tables that are not there as `imago` has them, or need not be written.

use super::ahead::Ahead;
use super::written::Written;
use std::ops::Range;

/// Refcounts ahead of the image's, and tables as they were written.
#[derive(Debug, Default)]
pub(super) struct InFile {
    pub(super) ahead: Ahead,
    pub(super) written: Written,
}

impl InFile {
    /// Something that is no table is written to a part of the file.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        self.written.forget(range);
    }
}
