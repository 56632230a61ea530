//! The nodes of a device's two ends in the store.

use alloc::format;
use alloc::string::String;

use ring_abi::DomId;

/// A split device: its kind, number, and the domains of its two ends.
///
/// ```
/// use xenstore::DomId;
/// use xenstore::xenbus::Device;
///
/// let device = Device::new("vif", DomId(3), 0);
/// assert_eq!(device.back_path(), "/local/domain/0/backend/vif/3/0");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// The kind as paths spell it: `vbd`, `vif`, `qdisk`.
    pub kind: String,
    /// The frontend's domain.
    pub front: DomId,
    /// The backend's domain.
    pub back: DomId,
    /// The device's number: a vbd's virtual device number, a vif's handle.
    pub id: u32,
}

impl Device {
    /// Makes a device whose backend is in dom0.
    pub fn new(kind: impl Into<String>, front: DomId, id: u32) -> Device {
        Device { kind: kind.into(), front, back: DomId::DOM0, id }
    }

    /// The frontend's node: `/local/domain/<front>/device/<kind>/<id>`.
    pub fn front_path(&self) -> String {
        format!("/local/domain/{}/device/{}/{}", self.front, self.kind, self.id)
    }

    /// The backend's node: `/local/domain/<back>/backend/<kind>/<front>/<id>`.
    pub fn back_path(&self) -> String {
        format!("/local/domain/{}/backend/{}/{}/{}", self.back, self.kind, self.front, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_paths_are_those_of_libxl() {
        let device = Device::new("vbd", DomId(3), 51712);
        assert_eq!(device.front_path(), "/local/domain/3/device/vbd/51712");
        assert_eq!(device.back_path(), "/local/domain/0/backend/vbd/3/51712");
    }
}
