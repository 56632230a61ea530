//! Arrays of 8-byte values, to and from a slot: sixteen bytes at a time where the machine can, which is as fast
//! as C's copy of the whole structure. Elsewhere, under Miri and under loom, word by word.

use super::Slot;
use arrayvec::ArrayVec;
use core::mem::MaybeUninit;

/// A type of 8 bytes as they stand on the wire.
///
/// # Safety
/// `repr(C)` or `repr(transparent)`, 8 bytes, and any bytes are a value of it. [`WireValue::FIELDS`] has no bit set
/// where the type has padding.
pub unsafe trait WireValue: Copy {
    /// The bits that are fields; what is padding goes to the wire as 0, never as what was in memory (XSA-216).
    const FIELDS: u64;
    /// The value as a word, its padding 0.
    fn to_word(self) -> u64;
}

impl Slot<'_> {
    /// Copies `count` values out of the slot, each read once, over what `into` holds.
    ///
    /// Straight-line copies in three sizes, for a loop would cost more than what it moves: one value, as many as
    /// make 64 bytes with a header of 24, or all that fit into the slot. Values beyond `count` are not kept.
    #[inline(always)]
    pub(crate) fn load_values<T: WireValue, const N: usize>(
        &self,
        offset: usize,
        count: usize,
        into: &mut ArrayVec<T, N>,
    ) {
        const { assert!(size_of::<T>() == 8 && N > 5) }
        assert!(count <= N, "more values than there is room for");
        let to = into.as_mut_ptr().cast::<MaybeUninit<T>>();
        if count <= 1 {
            self.load_fixed::<T, 1>(offset, to);
        } else if count <= 5 {
            self.load_fixed::<T, 5>(offset, to);
        } else {
            self.load_fixed::<T, N>(offset, to);
        }
        // SAFETY: `count` values or more were written, and no more than N.
        unsafe { into.set_len(count) }
    }

    /// `K` is odd: one value, then pairs, which are then 16-aligned in every slot that is.
    #[inline(always)]
    fn load_fixed<T: WireValue, const K: usize>(&self, offset: usize, to: *mut MaybeUninit<T>) {
        const { assert!(K % 2 == 1) }
        assert!(offset + 8 * K <= self.len, "values outside the slot");
        let first = self.load64(offset);
        // SAFETY: `to` has room for K values, and the trait says that any 8 bytes are one.
        unsafe { to.cast::<u64>().write_unaligned(first) }
        for i in (1..K).step_by(2) {
            // SAFETY: as above; the pair lies inside the slot by the assertion.
            unsafe { pair::load(self, offset + 8 * i, to.add(i).cast()) }
        }
    }

    /// Copies `K` values, an odd number, into the slot.
    #[inline(always)]
    pub(crate) fn store_values<T: WireValue, const K: usize>(&self, offset: usize, values: &[T; K]) {
        const { assert!(size_of::<T>() == 8 && K % 2 == 1) }
        assert!(offset + 8 * K <= self.len, "values outside the slot");
        self.store64(offset, values[0].to_word());
        for i in (1..K).step_by(2) {
            // SAFETY: values i and i + 1 exist for K is odd; the pair lies inside the slot by the assertion.
            unsafe { pair::store(self, offset + 8 * i, values.as_ptr().add(i)) }
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
mod pair {
    use super::*;
    use core::arch::asm;
    use core::arch::x86_64::{__m128i, _mm_set1_epi64x};

    // Assembly, for the peer, or another thread of this program, writes meanwhile. A move of 16 bytes may be torn between its
    // halves; the ring's indexes say when a slot is whole, and a peer that writes at other times garbles its own request.

    /// # Safety
    /// 16 bytes of the slot from `offset` and 16 bytes at `to` exist.
    #[inline(always)]
    pub(super) unsafe fn load(slot: &Slot<'_>, offset: usize, to: *mut __m128i) {
        // SAFETY: by the caller; slots are 4-aligned or more, hence the unaligned move.
        unsafe {
            let value: __m128i;
            asm!(
                "movups {value}, [{from}]",
                value = lateout(xmm_reg) value,
                from = in(reg) slot.base.as_ptr().add(offset),
                options(nostack, preserves_flags, readonly)
            );
            to.write_unaligned(value);
        }
    }

    /// # Safety
    /// 16 bytes of the slot from `offset` and two values at `from` exist.
    #[inline(always)]
    pub(super) unsafe fn store<T: WireValue>(slot: &Slot<'_>, offset: usize, from: *const T) {
        // SAFETY: by the caller. The values' padding may be uninitialised, so that it stays `MaybeUninit` until the
        // instruction has cleared it.
        unsafe {
            let found = from.cast::<MaybeUninit<__m128i>>().read_unaligned();
            asm!(
                "pand {value}, {fields}",
                "movups [{to}], {value}",
                value = inout(xmm_reg) found => _,
                fields = in(xmm_reg) _mm_set1_epi64x(T::FIELDS as i64),
                to = in(reg) slot.base.as_ptr().add(offset),
                options(nostack, preserves_flags)
            );
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri), not(loom))))]
mod pair {
    use super::*;

    /// # Safety
    /// 16 bytes at `to` exist.
    pub(super) unsafe fn load(slot: &Slot<'_>, offset: usize, to: *mut [u64; 2]) {
        // SAFETY: by the caller.
        unsafe { to.write_unaligned([slot.load64(offset), slot.load64(offset + 8)]) }
    }

    /// # Safety
    /// Two values at `from` exist.
    pub(super) unsafe fn store<T: WireValue>(slot: &Slot<'_>, offset: usize, from: *const T) {
        // SAFETY: by the caller.
        let (first, second) = unsafe { (*from, *from.add(1)) };
        slot.store64(offset, first.to_word());
        slot.store64(offset + 8, second.to_word());
    }
}
