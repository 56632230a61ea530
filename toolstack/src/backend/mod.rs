//! Dom0's back ends made usable: the bridges that vifs join, the disks that vbds are, and what the kernel's own back ends
//! have taken.

pub mod bridges;
pub mod claimed;
pub mod images;
