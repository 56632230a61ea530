//! A guest: a process that is a domain, opens its devices as they come, and makes each usable by ordinary programs.
//!
//! [`watch`] finds the devices; a vbd is exported over NBD ([`export`], [`blocks`]), a vif is joined to a tap
//! ([`tap`], [`nic_port`]). On a real Xen host the kernel may hold devices too ([`real`]).

pub mod blocks;
pub mod export;
pub mod netns;
pub mod nic_port;
pub mod real;
pub mod service;
pub mod tap;
pub mod watch;
