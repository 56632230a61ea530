//! Parts of event loops that know nothing of Xen: [`TokenBucket`] bounds a rate, [`Stream`] is a byte stream that can
//! be polled.
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
//! Without the default feature `std` only [`token_bucket`] remains.
#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(feature = "std")]
mod stream;
pub mod token_bucket;

#[cfg(feature = "std")]
pub use stream::Stream;
pub use token_bucket::TokenBucket;
