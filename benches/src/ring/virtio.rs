//! rust-vmm's virtio-queue, served chains of three descriptors: the header, data and status of a virtio disk read,
//! which is what a block request of one segment is here.
//!
//! The driver's half is made as cheap as can be, for the peer's benefit: descriptors are written once, and a
//! request costs one entry of the available ring.
#![allow(clippy::cast_ptr_alignment)] // Both rings are aligned in guest memory, which is page-aligned.
#![allow(unsafe_code)] // The driver's half writes guest memory through a pointer.

use std::hint::black_box;
use std::sync::atomic::{AtomicU16, Ordering};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const SIZE: u16 = 256;
const CHAIN: u16 = 3;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u32 = 0x2000;
const USED: u32 = 0x3000;

/// Both halves of a virtqueue.
pub struct Virtqueue {
    memory: GuestMemoryMmap<()>,
    queue: Queue,
    avail: *mut u16,
    used: *mut u16,
    sent: u16,
}

impl std::fmt::Debug for Virtqueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Virtqueue").field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl Virtqueue {
    /// A queue of 256 whose descriptor table holds chains of three.
    pub fn new() -> Self {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("1 MiB");
        for at in 0..SIZE {
            let (len, flags) = [(16, NEXT), (4096, NEXT | WRITE), (1, WRITE)][usize::from(at % CHAIN)];
            let descriptor = Descriptor::new(0x1_0000 + u64::from(at) * 8, len, flags, at + 1);
            memory.write_obj(descriptor, GuestAddress(u64::from(at) * 16)).expect("guest memory");
        }
        let mut queue = Queue::new(SIZE).expect("a power of two");
        queue.set_desc_table_address(Some(0), None);
        queue.set_avail_ring_address(Some(AVAIL), None);
        queue.set_used_ring_address(Some(USED), None);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        let host =
            |at: u32| memory.get_host_address(GuestAddress(at.into())).expect("guest memory").cast::<u16>();
        let avail = host(AVAIL);
        let used = host(USED);
        Self { memory, queue, avail, used, sent: 0 }
    }

    fn ask(&mut self, count: u16) {
        for i in 0..count {
            let slot = usize::from(2 + self.sent.wrapping_add(i) % SIZE);
            // SAFETY: the available ring is two words and 256 entries.
            unsafe { self.avail.add(slot).write_volatile(i % (SIZE / CHAIN) * CHAIN) };
        }
        self.sent = self.sent.wrapping_add(count);
        // SAFETY: word 1 of the available ring is its index.
        unsafe { AtomicU16::from_ptr(self.avail.add(1)) }.store(self.sent, Ordering::Release);
    }

    fn serve(&mut self) {
        let memory = &self.memory;
        while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            for descriptor in chain {
                black_box(&descriptor);
            }
            self.queue.add_used(memory, head, 4097).expect("inside the used ring");
        }
        black_box(self.queue.needs_notification(memory).expect("guest memory"));
    }

    fn reap(&self) -> u16 {
        // SAFETY: word 1 of the used ring is its index.
        unsafe { AtomicU16::from_ptr(self.used.add(1)) }.load(Ordering::Acquire)
    }

    /// Both halves alternately on one thread; the chains answered.
    #[inline(never)]
    pub fn one_thread(&mut self, batches: u32, batch: u16) -> u64 {
        let mut done = 0;
        for _ in 0..batches {
            let before = self.reap();
            self.ask(batch);
            self.serve();
            done += u64::from(self.reap().wrapping_sub(before));
        }
        done
    }
}

impl Default for Virtqueue {
    fn default() -> Self {
        Self::new()
    }
}
