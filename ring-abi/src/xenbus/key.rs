//! Names of the nodes that every kind of device has in the store, and who writes each; [`crate::blkif::key`] and
//! [`crate::netif::key`] re-export them beside their own.
//!
//! Numbers are decimal; flags are 0 or 1, and 0 where nothing else is said.

/// Written by the toolstack into the backend's directory: path of the frontend's directory.
pub const FRONTEND: &str = "frontend";
/// Written by the toolstack into the backend's directory: the frontend's domain.
pub const FRONTEND_ID: &str = "frontend-id";
/// Written by the toolstack into the frontend's directory: path of the backend's directory.
pub const BACKEND: &str = "backend";
/// Written by the toolstack into the frontend's directory: the backend's domain.
pub const BACKEND_ID: &str = "backend-id";
/// Written by the toolstack into the backend's directory: 1, or 0 when the device is to go for good.
pub const ONLINE: &str = "online";
/// Written by each side into its own directory: its [`super::XenbusState`].
pub const STATE: &str = "state";
/// Written by our backends into their own directory, before their first state: a random text that tells this device from
/// any other that has or had the same path. It is xpv's own: other ends, and toolstacks, which remove it with the directory,
/// neither write nor read it. A successor of a backend keeps the one it finds, as it serves the same device.
pub const INSTANCE: &str = "instance";
/// Written by the hotplug script into the backend's directory: `connected` or `error`.
pub const HOTPLUG_STATUS: &str = "hotplug-status";
/// Written by the hotplug script into the backend's directory: why it failed.
pub const HOTPLUG_ERROR: &str = "hotplug-error";
/// Written by the toolstack into the backend's directory: path of the hotplug script.
pub const SCRIPT: &str = "script";
/// Written by the toolstack into the backend's directory: the device's number.
pub const HANDLE: &str = "handle";
/// Written by the toolstack into the backend's directory: what the device stands on.
pub const TYPE: &str = "type";
/// Written by the toolstack into the frontend's directory: flag, default 1: the backend may be trusted with what
/// else is in a page.
pub const TRUSTED: &str = "trusted";
/// Written by the backend: most queues.
pub const MULTI_QUEUE_MAX_QUEUES: &str = "multi-queue-max-queues";
/// Written by the frontend: queues; their keys are then in `queue-N/`.
pub const MULTI_QUEUE_NUM_QUEUES: &str = "multi-queue-num-queues";
/// Written by the frontend: the event channel's port, for the backend to bind; of a vif, for both rings.
pub const EVENT_CHANNEL: &str = "event-channel";
