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

    /// The device whose backend is at this path, if it is one: `/local/domain/0/backend/vbd/3/51712`.
    pub fn from_back_path(path: &str) -> Option<Device> {
        let mut parts = path.strip_prefix("/local/domain/")?.split('/');
        let back = parts.next()?.parse().ok()?;
        if parts.next()? != "backend" {
            return None;
        }
        let kind = parts.next()?.into();
        let front = parts.next()?.parse().ok()?;
        let id = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Device { kind, front, back, id })
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
        assert_eq!(Device::from_back_path(&device.back_path()), Some(device));
        assert_eq!(Device::from_back_path("/local/domain/0/backend/vbd/3"), None);
        assert_eq!(Device::from_back_path("/local/domain/0/backend/vbd/3/1/state"), None);
    }
}
