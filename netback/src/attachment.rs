//! The bridge of a vif, as the program that serves vifs has found it.

use bridge::Bridge;
use std::sync::Arc;

/// The bridge of a vif, and how the vif is attached to it.
pub struct Attachment {
    /// The bridge that the vif is a port of.
    pub bridge: Arc<Bridge>,
    /// Whether the key `mtu` bounds the frames sent to the guest. `false` where the bridge joins the vif to an
    /// interface of this machine, whose mtu the machine's administrator sets.
    pub limit_mtu: bool,
    /// Called when the device is removed or closed, and not when the driver stops: a successor needs the bridge then.
    pub cleanup: Option<Box<dyn FnOnce() + Send>>,
}

impl Attachment {
    /// An attachment to a bridge with many ports.
    pub fn port_of(bridge: Arc<Bridge>) -> Self {
        Self { bridge, limit_mtu: true, cleanup: None }
    }
}
