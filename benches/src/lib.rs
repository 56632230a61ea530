//! Benchmarks of xpv beside its peers: the rows of the performance table, and what measures them.

pub mod block;
pub mod net;
pub mod ring;
pub mod row;
pub mod xen;
