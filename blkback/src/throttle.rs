//! Limits of disks: how many requests and bytes a second a disk, or a group of disks, may have. Time is an argument.
//!
//! [`IoLimits`] are what an operator writes. A [`Limiter`] has their token buckets, and tells each request when it may start; it is
//! shared, in a [`Throttle`], by the rings of a disk or of a group's disks. [`Lanes`] are a ring's requests that wait for their
//! time. [`groups`] keeps who shares what. Requests wait after they were taken from the ring, so that flushes pass them;
//! they are late, never failed (`docs/decisions/0021-a-disks-requests-reserve-their-time.md`).

pub mod groups;
pub mod lanes;
pub mod limiter;
pub mod limits;

pub use groups::{Membership, ThrottleGroups};
pub use lanes::Lanes;
pub use limiter::{Credit, Limiter, Throttle};
pub use limits::{IoLimits, Limit, LimitKind};
