//! Receive buffers that are allocated once: frames hold them, and they come back with the last hold.
#![allow(unsafe_code)] // frames point into the buffers

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use memmap2::{MmapMut, MmapRaw};

use crate::{Frame, Hold, Pin, Seg};

const NONE: u32 = u32::MAX;

/// Buffers of one size in one anonymous mapping. The one given back last is taken first, so that only as
/// much of it is ever resident as was in use at once.
#[derive(Debug)]
pub struct Pool {
    memory: MmapRaw,
    size: usize,
    holds: Box<[AtomicU32]>,
    /// Free buffers as a stack: which is below each one.
    below: Box<[AtomicU32]>,
    /// The top of the stack, and in the upper half how often it has changed: a top that has been away and
    /// come back must not be taken for one that has stayed.
    top: AtomicU64,
}

impl Pool {
    /// `count` buffers of `size` bytes. Pages are taken from the system when first written.
    pub fn new(count: u32, size: usize) -> io::Result<Arc<Pool>> {
        let (count, size) = (count.clamp(1, 1 << 20), size.clamp(1, 1 << 20));
        let memory = MmapMut::map_anon(count as usize * size)?.into();
        let below = (0..count).map(|i| AtomicU32::new(i.checked_sub(1).unwrap_or(NONE))).collect();
        let holds = (0..count).map(|_| AtomicU32::new(0)).collect();
        Ok(Arc::new(Pool { memory, size, holds, below, top: AtomicU64::new(u64::from(count - 1)) }))
    }

    /// Takes a buffer, if one is free.
    pub fn take(self: &Arc<Pool>) -> Option<Buffer> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let index = top as u32;
            if index == NONE {
                return None;
            }
            let below = self.below[index as usize].load(Ordering::Relaxed);
            match self.swing(top, below) {
                Ok(_) => return Some(Buffer { pool: Some(self.clone()), index }),
                Err(now) => top = now,
            }
        }
    }

    fn give(&self, index: u32) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            self.below[index as usize].store(top as u32, Ordering::Relaxed);
            match self.swing(top, index) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    fn swing(&self, from: u64, to: u32) -> Result<u64, u64> {
        let next = (from >> 32).wrapping_add(1) << 32 | u64::from(to);
        self.top.compare_exchange_weak(from, next, Ordering::AcqRel, Ordering::Acquire)
    }

    fn start(&self, index: u32) -> *mut u8 {
        self.memory.as_mut_ptr().wrapping_add(index as usize * self.size)
    }
}

impl Hold for Pool {
    fn hold(&self, token: u32) {
        self.holds[token as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self, token: u32) {
        if self.holds[token as usize].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.give(token);
        }
    }
}

/// A buffer that is to be filled: nobody else has it.
#[derive(Debug)]
pub struct Buffer {
    pool: Option<Arc<Pool>>,
    index: u32,
}

impl Buffer {
    /// Where it starts; writable for [`Buffer::size`] bytes while it is not given to a frame.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.pool.as_ref().map_or(std::ptr::null_mut(), |pool| pool.start(self.index))
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| pool.size)
    }

    /// Makes its first `len` bytes (clamped to its size) the payload of `frame`, after the frame's head.
    pub fn give_to(self, frame: &mut Frame, len: usize) {
        self.give_part_to(frame, 0, len);
    }

    /// Makes `len` bytes from `at` on (clamped to its size) the payload of `frame`, after the frame's head.
    pub fn give_part_to(mut self, frame: &mut Frame, at: usize, len: usize) {
        let at = at.min(self.size());
        let (start, len) = (self.as_mut_ptr().wrapping_add(at), len.min(self.size() - at));
        if let Some(pool) = self.pool.take() {
            pool.hold(self.index);
            frame.pin(Pin::adopt(pool, self.index));
            // SAFETY: the pin keeps the pool, and with it the mapping; nobody takes the buffer meanwhile.
            let pushed = frame.push(unsafe { Seg::new(start, len as u32) });
            debug_assert!(pushed.is_ok(), "a frame without segments has room for one");
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give(self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_with_the_last_frame() {
        let pool = Pool::new(2, 100).unwrap();
        let (one, two) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        let mut frame = Frame::from_slice(b"head");
        // SAFETY: the buffer is ours, and 100 bytes long.
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
    fn threads_never_have_one_buffer_at_once() {
        let pool = Pool::new(3, 8).unwrap();
        std::thread::scope(|scope| {
            for mark in 1..=4u8 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..if cfg!(miri) { 20 } else { 20_000 } {
                        let Some(buffer) = pool.take() else { continue };
                        let byte = buffer.as_mut_ptr();
                        // SAFETY: the buffer is ours alone: which is what is being tested.
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
