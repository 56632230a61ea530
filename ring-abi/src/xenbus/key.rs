//! Names of the nodes in the store that devices of every kind have, and who writes each.

/// Written by the tool stack into the backend's directory: path of the frontend's directory.
pub const FRONTEND: &str = "frontend";
/// Written by the tool stack into the backend's directory: the frontend's domain.
pub const FRONTEND_ID: &str = "frontend-id";
/// Written by the tool stack into the frontend's directory: path of the backend's directory.
pub const BACKEND: &str = "backend";
/// Written by the tool stack into the frontend's directory: the backend's domain.
pub const BACKEND_ID: &str = "backend-id";
/// Written by the tool stack into the backend's directory: 1, or 0 when the device is being removed.
pub const ONLINE: &str = "online";
/// Written by each side into its own directory: its [`super::XenbusState`].
pub const STATE: &str = "state";
/// Written by the hotplug script into the backend's directory: `connected` or `error`.
pub const HOTPLUG_STATUS: &str = "hotplug-status";
/// Written by the hotplug script into the backend's directory: why it failed.
pub const HOTPLUG_ERROR: &str = "hotplug-error";
/// Written by the tool stack into the backend's directory: path of the hotplug script.
pub const SCRIPT: &str = "script";
