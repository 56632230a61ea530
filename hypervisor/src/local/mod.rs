//! The local hypervisor: domains are processes, or threads of one, that share sealed memfds and pipes.
//!
//! A domain grants pages of its *arena* for a peer: one memfd per (owner, peer) pair, with a grant table in Xen's
//! version 1 layout at its start, so that a process can only map pages of arenas that it owns or that were made for
//! it. A *broker* authenticates processes, passes arenas and event channels between domains, and detects when a
//! domain exits; peers then share, map, copy, flip and notify without it.
//!
//! Limits compared with Xen: a mapped page cannot be revoked by force, and read-only grants are not enforced against
//! a hostile process that has the arena mapped. Only Xen isolates domains.

mod answer;
mod arena;
mod atomic;
mod balloon;
mod broker;
mod broker_config;
mod channel;
mod closer;
mod control;
mod copy;
mod directory;
mod domain;
mod entry;
mod events;
mod flip;
mod follower;
#[cfg(any(test, fuzzing))]
mod harness;
mod layout;
mod membership;
mod own_arena;
mod owned_frames;
mod peer_arena;
mod peer_process;
mod peer_slot;
mod peer_slots;
mod pins;
mod range_allocator;
mod record;
mod registry;
mod sandbox;
mod session;
mod socket;
mod state_file;
mod token;
mod window;
mod wire;

pub use answer::StoreLease;
pub use broker::Broker;
pub use broker_config::{BrokerConfig, DomainEvent, DomainEvents, MayTakeOver};
pub use control::{Control, Watch};
pub use domain::{Domain, Options};
pub use sandbox::Sandbox;
pub use wire::DomainInfo;

/// For test and fuzz programs only.
#[doc(hidden)]
pub mod internals {
    pub use super::arena::Arena;
    #[cfg(any(test, fuzzing))]
    pub use super::harness::hostile;
    pub use super::layout::Layout;
    pub use super::record::KeptMember;
    pub use super::state_file::{Kept, KeptDomain};
    pub use super::token::Token;
    pub use super::wire::{Failure, MAX_MESSAGE, Reply, Request};
}
