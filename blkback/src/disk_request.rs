//! What a request in flight asks of the disk, and the backend's name for it.

use crate::check::Segments;

/// The backend's name of a request in flight: the number of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u32);

/// What is to be done with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Completed writes become durable.
    Flush,
}

/// One operation for the disk, on behalf of a request in flight; [`Queue::complete`](crate::queue::Queue::complete) is called
/// once for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// The request in flight.
    pub tag: Tag,
    /// What to do.
    pub operation: Operation,
    /// First sector, in units of 512 bytes; checked. 0 for a flush.
    pub sector: u64,
    /// Checked; none for a flush.
    pub segments: Segments,
}
