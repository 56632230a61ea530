// Not a core: does I/O or calls a hypervisor.

//! Bounce buffers of requests with more data than fits into the request's own segments: bounded, as a ring may have hundreds of them
//! with megabytes each, and given back.

use vm_memory::MmapRegion;

/// Bytes of buffers in use at which a further request waits; a single one may have more.
const MOST_BYTES: usize = 8 << 20;
/// Sizes are multiples of this.
const UNIT: usize = 64 << 10;

/// The large buffers of one ring.
#[derive(Debug, Default)]
pub(super) struct LargeBuffers {
    in_use: usize,
    spare: Vec<MmapRegion>,
}

impl LargeBuffers {
    /// Takes a buffer of so many bytes at least; `None` while there are too many in use.
    pub(super) fn take(&mut self, bytes: usize) -> grant_table::Result<Option<MmapRegion>> {
        let size = bytes.next_multiple_of(UNIT);
        if self.in_use > 0 && self.in_use + size > MOST_BYTES {
            return Ok(None);
        }
        let fits = |region: &MmapRegion| (size..=2 * size).contains(&region.size());
        let region = match self.spare.iter().position(fits) {
            Some(number) => self.spare.swap_remove(number),
            None => {
                // Others must not add to those in use without bound.
                self.spare.clear();
                MmapRegion::new(size)
                    .map_err(|_| grant_table::Error::NoSpace("memory for a large bounce buffer"))?
            }
        };
        self.in_use += region.size();
        Ok(Some(region))
    }

    /// Gives a buffer back, to be used again.
    pub(super) fn give_back(&mut self, region: MmapRegion) {
        self.in_use -= region.size();
        self.spare.push(region);
    }

    /// Frees the memory of buffers that are not in use.
    pub(super) fn give_back_spare(&mut self) {
        self.spare = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn buffers_in_use_are_bounded_and_used_again() {
        let mut buffers = LargeBuffers::default();
        // A single one of any size.
        let whole = buffers.take(16 * MIB).unwrap().unwrap();
        assert!(buffers.take(1).unwrap().is_none());
        buffers.give_back(whole);
        let mut taken: Vec<_> = std::iter::from_fn(|| buffers.take(MIB - 1).unwrap()).collect();
        assert_eq!((taken.len(), buffers.in_use), (8, 8 * MIB));
        let last = taken.pop().unwrap();
        let address = last.as_ptr();
        buffers.give_back(last);
        let again = buffers.take(MIB).unwrap().unwrap();
        assert_eq!(again.as_ptr(), address);
        taken.push(again);
        taken.into_iter().for_each(|region| buffers.give_back(region));
        assert_eq!((buffers.in_use, buffers.spare.len()), (0, 8));
        buffers.give_back_spare();
        assert!(buffers.spare.is_empty());
    }
}
