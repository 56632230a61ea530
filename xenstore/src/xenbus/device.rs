//! Where a device's two ends are in the store.

use alloc::format;
use alloc::string::String;

use crate::DomId;

/// A split device: what it is, who has it, who serves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// The kind as paths spell it: `vbd`, `vif`, `qdisk`.
    pub kind: String,
    /// The domain with the frontend.
    pub front: DomId,
    /// The domain with the backend.
    pub back: DomId,
    /// The device's number: a vbd's virtual device number, a vif's handle.
    pub id: u32,
}

impl Device {
    /// A device whose backend is in dom0.
    pub fn new(kind: impl Into<String>, front: DomId, id: u32) -> Device {
        Device { kind: kind.into(), front, back: 0, id }
    }

    /// `/local/domain/<front>/device/<kind>/<id>`
    pub fn front_path(&self) -> String {
        format!("/local/domain/{}/device/{}/{}", self.front, self.kind, self.id)
    }

    /// `/local/domain/<back>/backend/<kind>/<front>/<id>`
    pub fn back_path(&self) -> String {
        format!("/local/domain/{}/backend/{}/{}/{}", self.back, self.kind, self.front, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_xens() {
        let device = Device::new("vbd", 3, 51712);
        assert_eq!(device.front_path(), "/local/domain/3/device/vbd/51712");
        assert_eq!(device.back_path(), "/local/domain/0/backend/vbd/3/51712");
    }
}
