//! Network backend: a guest's vif as a port of the bridge.
//!
//! [`Driver`] serves all vifs of a domain beside the store's control loop. Below it, from the shell inwards: [`Vif`]
//! is the port; [`Tx`](tx::Tx) and [`Rx`](rx::Rx) are its two rings as values; [`assemble`] gathers the slots of a
//! packet; [`handshake`] decides what the two ends say to each other.

pub mod assemble;
pub mod backlog;
mod device;
pub mod handshake;
mod hold;
pub mod logged_ring;
mod offload;
mod ops;
mod response_logs;
pub mod rx;
pub mod tx;
mod vif;

pub use device::{Attachment, Driver, Resolver, vif_name};
pub use vif::{Config, Failed, OnFailure, Vif};
