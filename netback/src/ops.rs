//! A list of grant copies whose memory is kept from round to round.
#![allow(unsafe_code)] // An empty list of what cannot be sent between threads can be.

use hypervisor::{CopyOp, Error, Hypervisor};

/// Room for copies. What it lends is empty each time: only its allocation stays.
#[derive(Debug, Default)]
pub(crate) struct Ops(Vec<CopyOp<'static>>);

// SAFETY: the vector in it is always empty (`keep` empties it): there is nothing in it that could be shared.
unsafe impl Send for Ops {}

impl Ops {
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    /// Lends the list; give it back with [`Ops::keep`].
    #[inline]
    pub(crate) fn lend<'a>(&mut self) -> Vec<CopyOp<'a>> {
        recycle(std::mem::take(&mut self.0))
    }

    #[inline]
    pub(crate) fn keep(&mut self, list: Vec<CopyOp<'_>>) {
        self.0 = recycle(list);
    }
}

/// The same allocation for copies of another lifetime: collecting an emptied vector's iterator reuses it.
#[inline]
fn recycle<'a>(mut list: Vec<CopyOp<'_>>) -> Vec<CopyOp<'a>> {
    list.clear();
    list.into_iter().map_while(|_| None).collect()
}

/// Makes the copies; none are no call.
#[inline]
pub(crate) fn run(hv: &dyn Hypervisor, ops: &mut [CopyOp<'_>]) -> Result<(), Error> {
    if ops.is_empty() { Ok(()) } else { hv.copy(ops) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocation_stays() {
        let mut ops = Ops::with_capacity(100);
        let list = ops.lend();
        let (place, capacity) = (list.as_ptr() as usize, list.capacity());
        ops.keep(list);
        let list = ops.lend();
        assert_eq!((list.as_ptr() as usize, list.capacity()), (place, capacity));
    }
}
