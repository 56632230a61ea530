//! The configuration of a bridge.

use std::time::Duration;

use crate::{GroupFwdMask, egress_queue::QueueLimits, fdb::Limits};

/// Which port a frame goes to.
#[derive(Clone, Copy, Debug)]
pub enum Forwarding {
    /// A learning bridge with these bounds: to the port where its destination was last seen, and none to the reserved group
    /// addresses of IEEE 802.1D.
    Learning(Limits),
    /// A wire: of two ports each one's frames go to the other, all of them.
    Wire,
}

/// The configuration of a bridge.
#[derive(Clone, Debug)]
pub struct Config {
    /// The bridge's name in the log, and that of its worker thread.
    pub name: String,
    /// Most frames received from one port before the next port is served; 64 to 256 is sensible.
    pub burst: usize,
    /// How long a port without frames is polled before it is armed, as Linux's `net.core.busy_poll`.
    pub busy_poll: Duration,
    /// Which port a frame goes to.
    pub forwarding: Forwarding,
    /// The bounds of the frames that wait for a port.
    pub queue: QueueLimits,
    /// Whether a port with an address is announced to those without one as it is attached: what is beyond those has last seen its station
    /// elsewhere, where a guest or its bridge has moved or was started again.
    pub announces: bool,
    /// The link-local groups whose frames a learning bridge forwards.
    pub group_fwd_mask: GroupFwdMask,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "bridge".into(),
            burst: 64,
            busy_poll: Duration::from_micros(20),
            forwarding: Forwarding::Learning(Limits::default()),
            queue: QueueLimits::default(),
            announces: false,
            group_fwd_mask: GroupFwdMask::default(),
        }
    }
}

impl Config {
    /// A wire of this name, for two ports. A port whose frames the other does not take is held for as long as that may pause, as
    /// Linux's backend stops its interface's queue: nobody else waits.
    pub fn wire(name: impl Into<String>) -> Config {
        let queue = QueueLimits::default();
        let queue = QueueLimits { hold: queue.stall, ..queue };
        Config { name: name.into(), forwarding: Forwarding::Wire, queue, ..Config::default() }
    }
}
