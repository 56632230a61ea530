//! How the two ends of a device connect and disconnect: one machine for all backends and one for all frontends, as values
//! without I/O. What is negotiated is their drivers' business: keys in, keys out.
//!
//! Initialising -> InitWait (the backend's features are published) -> Initialised or Connected (the frontend's rings are) ->
//! Connected. Closing -> Closed -> Initialising, each end waiting for the other. Watches merge and come late, so that every
//! decision is by what the store has now, and an end waits wherever the other has to have seen a state.

pub mod back;
pub mod front;
