//! Network back end: a guest's vif as a port of the bridge.
//!
//! [`Driver`] serves all vifs of a domain beside the store's control loop. Below it, from the shell inwards: [`Vif`]
//! is the port; [`Tx`](tx::Tx) and [`Rx`](rx::Rx) are its two rings as values; [`assemble`] gathers the slots of a
//! packet; [`handshake`] decides what the two ends say to each other.

pub mod assemble;
pub mod backlog;
mod device;
pub mod handshake;
mod hold;
mod journals;
pub mod noted;
mod offload;
mod ops;
pub mod rx;
pub mod tx;
mod vif;

pub use device::{Driver, Find, Place, vif_name};
pub use vif::{Config, Failed, OnFailure, Vif};
