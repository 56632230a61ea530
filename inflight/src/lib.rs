//! What a backend's successor must know: logs of a ring's requests and responses, in memory that outlives the process.
//!
//! [`InflightLog`] records requests that were taken and not answered, for rings answered in any order (disks);
//! [`ResponseLog`] records responses about to be published, for rings answered in order (vifs). [`InflightDir`] holds
//! their memory, a mapped file for each ring. Decisions 6 and 7 in `docs/decisions` give the reasons.
//!
//! ```
//! use inflight::InflightLog;
//! use ring_abi::blkif::{Io, OP_READ, Request, X86_64};
//! use ring_abi::ring::{Back, Front};
//! use ring_abi::testing::Pages;
//!
//! let page = Pages::new(1);
//! let file = Pages::for_bytes(InflightLog::<X86_64, Pages>::bytes(32));
//! let mut front = Front::<X86_64, _>::init(page.clone())?;
//! front.push(&Request::Io(Io { id: 7, operation: OP_READ, ..Io::EMPTY }));
//! let _ = front.commit();
//!
//! // A backend takes the request, records it in entry 0, and is killed.
//! let mut back = Back::<X86_64, _>::attach(page.clone())?;
//! let mut log = InflightLog::<X86_64, _>::start(file.clone(), 32, back.consumed())?;
//! let request = back.pop()?.unwrap();
//! log.take(0, 0, &request);
//! drop((back, log));
//!
//! // Its successor finds it.
//! let mut back = Back::<X86_64, _>::attach(page)?;
//! let mut log = InflightLog::<X86_64, _>::open(file, 32)?;
//! back.resume_at(log.taken())?;
//! assert_eq!(log.unanswered(back.produced())?, [(0, 0, request)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A log says of which version it is. One of a later version is refused, as one that is damaged is, so that its ring is connected anew rather than
//! resumed from what it may not mean; logs of earlier versions, and from before there were any, are resumed.
//!
//! Without the default feature `std` only the two logs remain.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
mod error;
#[cfg(feature = "std")]
mod inflight_dir;
pub mod inflight_log;
mod log_memory;
pub mod response_log;

#[cfg(feature = "std")]
pub use error::{Error, Result};
#[cfg(feature = "std")]
pub use inflight_dir::{InflightDir, InflightRegion};
pub use inflight_log::{DamagedEntry, InflightLog};
pub use log_memory::LogMismatch;
pub use response_log::{ResponseLog, ResumeError};
