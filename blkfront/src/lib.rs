//! Block frontend: a guest's side of a virtual block device.
//!
//! [`queue`], [`queues`], [`mod@split`] and [`handshake`] are cores, values without I/O: `--no-default-features` leaves only these,
//! `no_std` with `alloc`, for kernels with grants and events of their own. [`Disk`] is a device over a
//! [`grant_table::GrantTable`], used by one thread at a time; it has an example.
//!
//! The core of a ring, which a kernel drives itself:
//!
//! ```
//! use blkfront::queue::{Operation, Queue};
//! use ring_abi::blkif::{Response, Segment, Status, X86_64};
//! use ring_abi::{GrantRef, ring::Back};
//! # use ring_abi::testing::Pages;
//! # let page = Pages::new(1);
//!
//! let mut queue: Queue<X86_64, _, &str> = Queue::new(0);
//! queue.connect(page.clone())?;
//! let segment = Segment { gref: GrantRef(8), first_sect: 0, last_sect: 7 };
//! queue.submit(Operation::Read, 0, &[segment], "my request")?;
//! assert!(queue.commit().wanted(), "the backend is to be notified");
//!
//! // What a backend does.
//! let mut back = Back::<X86_64, _>::attach(page)?;
//! let request = back.pop()?.expect("a request");
//! back.push(&Response { id: request.id(), operation: request.operation(), status: Status::OKAY });
//! let _ = back.commit();
//!
//! let count = queue.poll(|item, status| assert_eq!((item, status), ("my request", Status::OKAY)))?;
//! assert_eq!(count, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod buffer;
#[cfg(feature = "std")]
mod connection;
#[cfg(feature = "std")]
pub mod device;
#[cfg(feature = "std")]
mod error;
pub mod handshake;
#[cfg(any(test, fuzzing))]
pub mod harness;
#[cfg(feature = "std")]
mod open;
pub mod queue;
pub mod queues;
#[cfg(feature = "std")]
mod request;
#[cfg(feature = "std")]
mod ring_pages;
pub mod split;
#[cfg(feature = "std")]
mod stats;
#[cfg(feature = "std")]
mod sync;
mod table;

#[cfg(feature = "std")]
pub use buffer::Buffer;
#[cfg(feature = "std")]
pub use device::{Disk, Options};
#[cfg(feature = "std")]
pub use error::{Error, Result};
pub use handshake::{DiscardLimits, Negotiated};
pub use queue::Operation;
#[cfg(feature = "std")]
pub use request::{Completion, Request};
pub use split::split;
#[cfg(feature = "std")]
pub use stats::Stats;
