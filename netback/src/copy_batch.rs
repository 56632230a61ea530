// Not a core: does I/O or calls a hypervisor.

//! A batch of grant copies that keeps its allocation from round to round.
//!
//! Copies borrow the memory of one round, so that a list of them cannot be a field of what lives longer. Its allocation
//! can: between rounds it is that of an empty vector, which a [`CopyList`] borrows for a round.

use grant_table::{CopyOp, Error, GrantTable};
use recycle_vec::VecExt;
use std::ops::{Deref, DerefMut};

/// The allocation of a list of copies: an empty list.
#[derive(Debug, Default)]
pub(crate) struct CopyBatch(Vec<CopyOp<'static>>);

impl CopyBatch {
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    /// Starts a list, which is empty. It gives the allocation back when it is dropped.
    #[inline]
    pub(crate) fn start<'a>(&mut self) -> CopyList<'_, 'a> {
        let copies = VecExt::recycle(std::mem::take(&mut self.0));
        CopyList { batch: self, copies }
    }
}

/// The copies of one round, which borrow memory for `'a`.
#[derive(Debug)]
pub(crate) struct CopyList<'batch, 'a> {
    batch: &'batch mut CopyBatch,
    copies: Vec<CopyOp<'a>>,
}

impl CopyList<'_, '_> {
    /// Carries out the copies by one call, or by none if there are no copies.
    #[inline]
    pub(crate) fn submit(&mut self, grants: &dyn GrantTable) -> Result<(), Error> {
        if self.copies.is_empty() { Ok(()) } else { grants.copy(&mut self.copies) }
    }
}

impl<'a> Deref for CopyList<'_, 'a> {
    type Target = Vec<CopyOp<'a>>;

    #[inline]
    fn deref(&self) -> &Vec<CopyOp<'a>> {
        &self.copies
    }
}

impl<'a> DerefMut for CopyList<'_, 'a> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Vec<CopyOp<'a>> {
        &mut self.copies
    }
}

impl Drop for CopyList<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        self.batch.0 = VecExt::recycle(std::mem::take(&mut self.copies));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grant_table::CopyPtr;

    /// Starts a list and adds copies of `bytes`; returns the list's address and capacity.
    fn round(batch: &mut CopyBatch, bytes: &mut [u8], count: usize) -> (usize, usize) {
        let memory = CopyPtr::Memory(bytes.into());
        let mut list = batch.start();
        assert!(list.is_empty());
        list.extend((0..count).map(|_| CopyOp::new(memory, memory, 8)));
        (list.as_ptr() as usize, list.capacity())
    }

    #[test]
    fn lists_of_all_rounds_have_one_allocation() {
        let mut batch = CopyBatch::with_capacity(100);
        let first = round(&mut batch, &mut [0; 8], 100);
        assert!(first.1 >= 100);
        for count in [0, 1, 100] {
            assert_eq!(round(&mut batch, &mut [0; 8], count), first);
        }
    }

    #[test]
    fn list_that_grows_keeps_the_larger_allocation() {
        let mut batch = CopyBatch::default();
        let grown = round(&mut batch, &mut [0; 8], 1_000);
        assert!(grown.1 >= 1_000);
        assert_eq!(round(&mut batch, &mut [0; 8], 1_000), grown);
    }
}
