//! Benchmarks of xpv beside its peers, and beside other revisions of itself: the rows of the performance table, and what
//! measures them.

pub mod against;
pub mod block;
pub mod cores;
pub mod interval;
pub mod missing;
pub mod net;
pub mod ring;
pub mod row;
pub mod rows;
pub mod sample;
pub mod xen;
