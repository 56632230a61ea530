//! The local hypervisor: domains are processes, or threads of one, that share sealed memfds and pipes.
//!
//! A domain grants pages out of its *arena* for a peer: one memfd per (owner, peer) pair, with a grant table in
//! Xen's version 1 layout at its head, so that a process only ever reaches pages of arenas it is a party to. A
//! *broker* introduces domains to each other, says who may be whom and notices who died; once introduced, peers
//! share, map, copy, flip and notify without it.
//!
//! What this world does not promise: a page once mapped cannot be taken away by force, and read-only grants are
//! not enforced against a hostile process that is itself a party to the arena. Real isolation is Xen's.

mod arena;
mod balloon;
mod broker;
mod channel;
mod control;
mod copy;
mod domain;
mod entry;
mod events;
mod flip;
#[cfg(any(test, fuzzing))]
mod harness;
mod layout;
mod owner;
mod peers;
mod pins;
mod registry;
mod remote;
mod runs;
mod sandbox;
mod session;
mod slot;
mod socket;
mod window;
mod wire;

pub use broker::{Broker, BrokerConfig, Event, Introducer};
pub use control::{Control, Watch};
pub use domain::{Domain, Options};
pub use sandbox::Sandbox;
pub use wire::DomainInfo;

/// What other test and fuzz programs may drive; not an interface for drivers.
#[doc(hidden)]
pub mod internals {
    pub use super::arena::Arena;
    pub use super::entry::Entry;
    #[cfg(any(test, fuzzing))]
    pub use super::harness::hostile;
    pub use super::layout::Layout;
    pub use super::runs::Runs;
    pub use super::wire::{MAX_MESSAGE, Reply, Request};
}
