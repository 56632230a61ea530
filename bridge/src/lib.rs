//! A learning Ethernet switch that has never heard of Xen.
//!
//! A [`Frame`] is what travels, a [`Port`] is where it comes from and goes to, a [`Batch`] is what a port
//! yields in one round. The page each frame's payload lies in is never copied by the switch: whoever
//! finally takes the frame copies it, once, or hands its pages to the kernel.

mod adapt;
mod batch;
pub mod checksum;
pub mod fdb;
mod frame;
pub mod headers;
mod mac;
mod meta;
pub mod offload;
mod pin;
mod pool;
pub mod port;
mod run;
mod seg;
pub mod segment;
mod stats;
pub mod switch;
mod waiter;
mod worker;

pub use batch::{Batch, Frames, Outbox};
pub use frame::{Frame, Full, HEAD, IOVECS, Iovecs, SEGS};
pub use meta::{Caps, Csum, Gso, GsoKind, Offload};
pub use pin::{Hold, Pin};
pub use pool::{Buffer, Pool};
pub use port::Port;
pub use run::{Bridge, Config, Error, FdbRow, PortInfo};
pub use seg::{Piece, Seg};
pub use stats::{Counters, Reason, Stats};
