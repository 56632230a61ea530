//! The configuration of a bridge.

use std::time::Duration;

use crate::{egress_queue::QueueLimits, fdb::Limits};

/// The configuration of a bridge.
#[derive(Clone, Debug)]
pub struct Config {
    /// The bridge's name in the log, and that of its worker thread.
    pub name: String,
    /// Most frames received from one port before the next port is served; 64 to 256 is sensible.
    pub burst: usize,
    /// How long a port without frames is polled before it is armed, as Linux's `net.core.busy_poll`.
    pub busy_poll: Duration,
    /// The bounds of the forwarding database.
    pub limits: Limits,
    /// The bounds of the frames that wait for a port.
    pub queue: QueueLimits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "bridge".into(),
            burst: 64,
            busy_poll: Duration::from_micros(20),
            limits: Limits::default(),
            queue: QueueLimits::default(),
        }
    }
}
