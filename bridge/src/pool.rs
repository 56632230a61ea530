// Not a core: does I/O or calls a hypervisor.

//! A pool of receive buffers, allocated once: a buffer is free again when the last frame that holds it is dropped.
#![allow(unsafe_code)] // frames point into the buffers

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use memmap2::{MmapMut, MmapRaw};

use crate::{Fragment, Frame, Pin, PinOwner};

const NONE: u32 = u32::MAX;

/// Buffers of one size in one anonymous mapping. The buffer freed last is taken first: only as many become resident as
/// were in use at the same time, and the one taken is likely to be in the cache.
///
/// The free list is therefore a stack. A FIFO queue (`crossbeam`'s `ArrayQueue`) would take all buffers in turn, so
/// that a pool of 256 buffers of 64 KiB would keep 16 MiB resident for a port that uses one at a time. A lock around a
/// vector would let one thread block another in [`PinOwner::release`].
///
/// ```
/// use bridge::{Frame, Pool};
///
/// let pool = Pool::new(1, 2048)?;
/// let mut frame = Frame::new();
/// pool.take().expect("a free buffer").give_to(&mut frame, 1000);
/// assert!(pool.take().is_none());
/// drop(frame);
/// assert!(pool.take().is_some());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Pool {
    memory: MmapRaw,
    size: usize,
    holds: Box<[AtomicU32]>,
    /// The free list, a stack: for each free buffer the one below it.
    below: Box<[AtomicU32]>,
    /// The top of the stack in the lower half, and the number of changes in the upper half, so that a top that was
    /// taken and freed meanwhile is not mistaken for an unchanged one (the ABA problem).
    top: AtomicU64,
}

impl Pool {
    /// Makes `count` buffers of `size` bytes. Their pages are allocated when first written.
    pub fn new(count: u32, size: usize) -> io::Result<Arc<Pool>> {
        let count = count.clamp(1, 1 << 20);
        let size = size.clamp(1, 1 << 20);
        let memory = MmapMut::map_anon(count as usize * size)?.into();
        let below = (0..count).map(|i| AtomicU32::new(i.checked_sub(1).unwrap_or(NONE))).collect();
        let holds = (0..count).map(|_| AtomicU32::new(0)).collect();
        Ok(Arc::new(Pool { memory, size, holds, below, top: AtomicU64::new(u64::from(count - 1)) }))
    }

    /// Takes a free buffer, if there is one.
    pub fn take(self: &Arc<Pool>) -> Option<Buffer> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let index = top as u32;
            if index == NONE {
                return None;
            }
            let below = self.below[index as usize].load(Ordering::Relaxed);
            match self.replace_top(top, below) {
                Ok(_) => return Some(Buffer { pool: Some(self.clone()), index }),
                Err(now) => top = now,
            }
        }
    }

    fn free(&self, index: u32) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            self.below[index as usize].store(top as u32, Ordering::Relaxed);
            match self.replace_top(top, index) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    fn replace_top(&self, from: u64, to: u32) -> Result<u64, u64> {
        let next = (from >> 32).wrapping_add(1) << 32 | u64::from(to);
        self.top.compare_exchange_weak(from, next, Ordering::AcqRel, Ordering::Acquire)
    }

    fn start(&self, index: u32) -> *mut u8 {
        self.memory.as_mut_ptr().wrapping_add(index as usize * self.size)
    }
}

impl PinOwner for Pool {
    fn hold(&self, token: u32) {
        self.holds[token as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self, token: u32) {
        if self.holds[token as usize].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.free(token);
        }
    }
}

/// A buffer taken from a pool, to be filled by its only holder.
#[derive(Debug)]
pub struct Buffer {
    pool: Option<Arc<Pool>>,
    index: u32,
}

impl Buffer {
    /// The buffer's start, writable for [`Buffer::size`] bytes until it is given to a frame.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.pool.as_ref().map_or(std::ptr::null_mut(), |pool| pool.start(self.index))
    }

    /// The buffer's bytes, which are what its last user left there.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let start = std::ptr::NonNull::new(self.as_mut_ptr()).unwrap_or(std::ptr::NonNull::dangling());
        // SAFETY: memory of the pool, initialised as it is anonymous, of this length (none without a pool). A buffer that was taken
        // has one holder, and a pointer into it that the holder gave out is followed by whoever it was given to in a call.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.size()) }
    }

    /// The buffer's size in bytes.
    pub fn size(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| pool.size)
    }

    /// Makes the buffer's first `len` bytes (clamped to its size) the payload of `frame`, after the frame's head.
    pub fn give_to(self, frame: &mut Frame, len: usize) {
        self.give_part_to(frame, 0, len);
    }

    /// Makes the buffer's `len` bytes from `at` on (clamped to its size) the payload of `frame`, after the frame's
    /// head.
    pub fn give_part_to(mut self, frame: &mut Frame, at: usize, len: usize) {
        let at = at.min(self.size());
        let start = self.as_mut_ptr().wrapping_add(at);
        let len = len.min(self.size() - at);
        if let Some(pool) = self.pool.take() {
            pool.hold(self.index);
            frame.pin(Pin::adopt(pool, self.index));
            // SAFETY: the pin keeps the pool and its mapping, and the buffer from being taken again.
            let pushed = frame.push(unsafe { Fragment::new(start, len as u32) });
            debug_assert!(pushed.is_ok(), "a frame without fragments takes one");
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.free(self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_is_free_again_after_its_last_frame() {
        let pool = Pool::new(2, 100).unwrap();
        let one = pool.take().unwrap();
        let two = pool.take().unwrap();
        assert!(pool.take().is_none());
        let mut frame = Frame::from_slice(b"head");
        // SAFETY: this test holds the buffer, which has 100 bytes.
        unsafe { one.as_mut_ptr().write_bytes(9, 100) };
        one.give_to(&mut frame, 50);
        assert_eq!(frame.to_vec(), [b"head".as_slice(), &[9; 50]].concat());
        let twin = frame.clone();
        drop(frame);
        assert!(pool.take().is_none());
        drop((twin, two));
        assert!(pool.take().is_some());
        assert_eq!(Arc::strong_count(&pool), 1);
    }

    #[test]
    fn no_two_threads_hold_the_same_buffer() {
        let pool = Pool::new(3, 8).unwrap();
        std::thread::scope(|scope| {
            for mark in 1..=4u8 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..if cfg!(miri) { 20 } else { 20_000 } {
                        let Some(buffer) = pool.take() else { continue };
                        let byte = buffer.as_mut_ptr();
                        // SAFETY: this thread alone holds the buffer, which is what the test checks.
                        unsafe {
                            byte.write_volatile(mark);
                            std::hint::spin_loop();
                            assert_eq!(byte.read_volatile(), mark);
                        }
                    }
                });
            }
        });
        let all: Vec<Buffer> = (0..4).map_while(|_| pool.take()).collect();
        assert_eq!(all.len(), 3);
    }
}
