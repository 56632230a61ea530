//! Parts of event loops, independent of Xen: [`EventSet`] waits for several descriptors, a [`Timer`] wakes it later and a
//! [`Waker`] from other threads, [`PollState`] says who looks at a device next, [`AdaptivePoll`] learns whether polling
//! before sleeping pays, [`TokenBucket`] bounds a rate, [`StormGuard`] bounds events that lead to no work, [`Counter`],
//! [`EventCounters`], [`Histogram`] and [`LongestTurn`] are what other threads read of a loop, [`Stream`] is a byte stream that can be polled,
//! and a [`Connector`] opens one.
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
//! Without the default feature `std` [`EventSet`], [`Waker`], [`LongestTurn`] and [`Stream`] are left out.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod adaptive_poll;
mod counter;
#[cfg(feature = "std")]
mod essential;
mod event_counters;
#[cfg(feature = "std")]
mod event_set;
pub mod histogram;
#[cfg(feature = "std")]
mod longest_turn;
mod poll_state;
pub mod storm_guard;
#[cfg(feature = "std")]
mod stream;
#[cfg(feature = "std")]
mod timer;
pub mod token_bucket;
#[cfg(feature = "std")]
mod waker;

pub use adaptive_poll::AdaptivePoll;
pub use counter::Counter;
#[cfg(feature = "std")]
pub use essential::Essential;
pub use event_counters::{EventCounters, EventCounts};
#[cfg(feature = "std")]
pub use event_set::{EventSet, Ready};
pub use histogram::{Distribution, Histogram};
#[cfg(feature = "std")]
pub use longest_turn::{LongestTurn, Turn};
pub use poll_state::{Interest, PollState};
pub use storm_guard::StormGuard;
#[cfg(feature = "std")]
pub use stream::{Connector, Stream};
#[cfg(feature = "std")]
pub use timer::Timer;
pub use token_bucket::TokenBucket;
#[cfg(feature = "std")]
pub use waker::Waker;
