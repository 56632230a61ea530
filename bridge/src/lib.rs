//! A learning Ethernet switch, or a wire of two ports, independent of Xen.
//!
//! A [`Port`] receives and sends [`Frame`]s in [`Batch`]es, and a [`Bridge`] forwards them between its ports on a
//! thread of its own. The switch never copies a frame's payload: the port that sends the frame copies it once, or
//! passes its pages to the kernel.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use bridge::{Batch, Bridge, Caps, Config, Frame, Frames, Port, port::pair::Pair};
//!
//! let bridge = Bridge::start(Config::default())?;
//! let (mut one, port) = Pair::new(Caps::plain(1500), 16)?;
//! bridge.attach("one", Box::new(port))?;
//! let (mut two, port) = Pair::new(Caps::plain(1500), 16)?;
//! bridge.attach("two", Box::new(port))?;
//!
//! let broadcast = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0; 48]].concat();
//! one.send(Frames::of(&[Frame::from_slice(&broadcast)]))?;
//! one.flush()?;
//! let mut batch = Batch::new(1);
//! let start = Instant::now();
//! while batch.is_empty() && start.elapsed() < Duration::from_secs(20) {
//!     two.recv(&mut batch)?;
//! }
//! assert_eq!(batch.frames()[0].to_vec(), broadcast);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod announce;
mod attached_port;
mod batch;
mod bridge_settings;
mod capture;
pub mod checksum;
mod command;
mod config;
mod destinations;
mod egress_queue;
mod error;
pub mod fdb;
mod flags;
mod fragment;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod harness;
pub mod headers;
mod lock;
mod mac;
mod meta;
mod mirror;
pub mod offload;
pub mod partial_checksum;
mod pin;
mod pin_table;
mod poller;
mod pool;
pub mod port;
mod port_settings;
mod rate_in;
mod rate_limit;
mod refusals;
mod run;
pub mod segment;
mod software_offload;
mod stats;
mod storm;
pub mod switch;
mod tick;
mod turn_budget;
mod turn_meter;
mod vlan;
mod worker;

pub use batch::{Batch, Frames, PortBatch};
pub use bridge_settings::{BridgeInfo, BridgeSetting, GroupFwdMask, InvalidBridgeSetting};
pub use capture::{
    Capture, CaptureDirection, CaptureFilter, CaptureHost, CaptureOptions, CapturedFrame, CapturedFrames,
};
pub use command::{Awaited, FdbEntry, FdbFilter, FdbRow, Given, PortInfo};
pub use config::{Config, Forwarding};
pub use egress_queue::QueueLimits;
pub use error::Error;
pub use event_loop::Interest;
pub use fdb::{FdbError, Kind as FdbKind};
pub use flags::{Flag, Flags};
pub use fragment::{Fragment, FragmentRef};
pub use frame::{Frame, HEAD, Iovecs, MAX_FRAGMENTS, MAX_IOVECS, TooManyFragments, iovec};
pub use lock::{Addresses, InvalidAddress, Lock, UnknownLock};
pub use meta::{Caps, Csum, Gso, GsoKind, Malformed, Offload};
pub use mirror::{Mirror, MirrorError, MirrorInfo};
pub use pin::{Pin, PinOwner};
pub use pin_table::PinTable;
pub use pool::{Buffer, Pool};
pub use port::Port;
pub use port_settings::{PortSettings, Setting};
pub use rate_limit::{Rate, RateLimits};
pub use run::Bridge;
pub use stats::{Counters, DropReason, Stats};
pub use storm::{Flood, StormLimits};
pub use vlan::{InvalidVlans, Vlans};
