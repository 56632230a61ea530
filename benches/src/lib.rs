//! Benchmarks of xpv beside its peers, and beside other revisions of itself: the rows of the performance table, and what
//! measures them.

pub mod against;
pub mod block;
pub mod cargo;
pub mod cores;
pub mod cost;
pub mod count;
pub mod guests;
pub mod interval;
pub mod link;
pub mod missing;
pub mod namespace;
pub mod net;
pub mod outage;
pub mod process;
pub mod ring;
pub mod row;
pub mod rows;
pub mod sample;
pub mod sandbox;
pub mod xen;
pub mod xpv;
