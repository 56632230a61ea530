//! Parts of event loops, independent of Xen: [`EventSet`] waits for several descriptors and can be masked,
//! [`AdaptivePoll`] learns whether polling before sleeping pays, [`TokenBucket`] bounds a rate, [`Stream`] is a byte stream
//! that can be polled, and a [`Connector`] opens one.
//!
//! ```
//! use core::time::Duration;
//! use event_loop::TokenBucket;
//!
//! let start = Duration::ZERO;
//! let mut bucket = TokenBucket::new(10, 2, start);
//! assert!(bucket.take(2, start));
//! assert!(!bucket.take(1, start));
//! assert_eq!(bucket.wait(1, start), Some(Duration::from_millis(100)));
//! ```
//!
//! Without the default feature `std` only [`AdaptivePoll`] and [`TokenBucket`] remain.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod adaptive_poll;
#[cfg(feature = "std")]
mod event_set;
#[cfg(feature = "std")]
mod stream;
pub mod token_bucket;

pub use adaptive_poll::AdaptivePoll;
#[cfg(feature = "std")]
pub use event_set::EventSet;
#[cfg(feature = "std")]
pub use stream::{Connector, Stream};
pub use token_bucket::TokenBucket;
