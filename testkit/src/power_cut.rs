//! What a disk may hold after its power was cut at any moment, and whether that is what its users were promised.
//!
//! [`LoggedDisk`] is a disk in memory below a backend that logs every write, discard and flush in a [`WriteLog`]. A device with a
//! volatile cache holds after a cut what was written before a flush that has completed, and of the rest any part, sector by sector:
//! [`WriteLog::image`] makes such images. [`Promises`] are a frontend's requests and when each was answered; [`Promises::check`]
//! compares an image with them. Both are values over the same [`Clock`], so that a cut is one of its moments. [`LogWrites`] is a
//! `WriteLog` that Linux's device mapper has made.

mod clock;
mod disk;
mod log;
mod log_writes;
mod promises;
mod sector;

pub use clock::Clock;
pub use disk::LoggedDisk;
pub use log::{Change, Choice, Logged, WriteLog};
pub use log_writes::LogWrites;
pub use promises::{Kind, Promises};
