//! A guest: a process that runs a domain's frontends, and makes each device usable by ordinary programs.
//!
//! [`watch`] finds the devices, and [`schedule`] decides which of them are served, [`failed`] closes others; a vbd is exported over NBD
//! ([`export`], [`blocks`]), with pages that [`buffers`] shares out; a vif is bridged to a tap ([`tap`], [`nic_port`]).
//! On a real Xen host the kernel may have frontends of the same domain ([`kernel`]).

pub mod blocks;
pub mod buffers;
pub mod export;
pub mod failed;
mod flipped;
pub mod kernel;
pub mod netns;
pub mod nic_port;
pub mod schedule;
pub mod service;
pub mod tap;
pub mod watch;
