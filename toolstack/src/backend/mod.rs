//! Dom0's backends made usable: the bridges that vifs join, the disks that vbds are, and what the kernel's own
//! backends have taken; and what vifs that are no more have left.

pub mod bridges;
pub mod claimed;
pub mod images;
pub mod leftovers;
