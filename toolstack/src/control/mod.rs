//! dom0's control socket, `DIR/control.sock`: what only the process knows, such as its devices' counters.
//!
//! [`protocol`] has the requests and the limits, [`report`] the form of counters in JSON, [`devices`] answers, [`socket`]
//! binds, [`server`] serves hostile clients too, [`service`] is dom0's thread, and [`client`] asks. `docs/control.md`
//! describes it for other programs.

pub mod bridge_query;
pub mod client;
pub mod devices;
pub mod protocol;
pub mod report;
pub mod server;
pub mod service;
pub mod socket;
