// Not a core: does I/O or calls a hypervisor.

//! A batch of grant copies that keeps its allocation from round to round.
#![allow(unsafe_code)] // An empty list of values that are not `Send` can be sent.

use grant_table::{CopyOp, Error, GrantTable};

/// The allocation of a list of copies. It is empty whenever no list is taken from it.
#[derive(Debug, Default)]
pub(crate) struct CopyBatch(Vec<CopyOp<'static>>);

// SAFETY: the vector is always empty (`recycle` empties it), so that it holds nothing that could be shared.
unsafe impl Send for CopyBatch {}

impl CopyBatch {
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    /// Takes out an empty list, to be returned by [`CopyBatch::recycle`].
    #[inline]
    pub(crate) fn take<'a>(&mut self) -> Vec<CopyOp<'a>> {
        clear(std::mem::take(&mut self.0))
    }

    /// Keeps the allocation of a list for the next round.
    #[inline]
    pub(crate) fn recycle(&mut self, list: Vec<CopyOp<'_>>) {
        self.0 = clear(list);
    }
}

/// Empties a list and changes its copies' lifetime. Collecting an emptied vector's iterator reuses the allocation.
#[inline]
fn clear<'a>(mut list: Vec<CopyOp<'_>>) -> Vec<CopyOp<'a>> {
    list.clear();
    list.into_iter().map_while(|_| None).collect()
}

/// Carries out copies by one call, or by none if the list is empty.
#[inline]
pub(crate) fn submit(grants: &dyn GrantTable, copies: &mut [CopyOp<'_>]) -> Result<(), Error> {
    if copies.is_empty() { Ok(()) } else { grants.copy(copies) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recycled_list_keeps_its_allocation() {
        let mut batch = CopyBatch::with_capacity(100);
        let list = batch.take();
        let address = list.as_ptr() as usize;
        let capacity = list.capacity();
        batch.recycle(list);
        let list = batch.take();
        assert_eq!((list.as_ptr() as usize, list.capacity()), (address, capacity));
    }
}
