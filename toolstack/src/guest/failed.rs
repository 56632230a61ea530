//! A device whose service has failed: as the store has it, and how it is closed.

use nix::errno::Errno;
use xenbus::{Change, DeviceEnd, Expected, Keys, XenbusState};
use xenstore::{Client, client};

/// The frontend of a device whose service has ended, before its number may be another device's.
pub struct Ended {
    end: DeviceEnd,
    state: XenbusState,
    instance: Option<String>,
}

impl Ended {
    /// Reads a frontend.
    ///
    /// # Errors
    /// ENOENT if it is removed.
    pub fn read(client: &mut Client, path: &str) -> client::Result<Ended> {
        let end = DeviceEnd::find_front(client, path)?;
        Ok(Ended { state: end.state(client)?, instance: end.instance(client)?, end })
    }

    /// Writes Closed, and reports an error if there is one, unless the device has been removed or replaced: `false` then.
    ///
    /// # Errors
    /// Those of the store.
    pub fn close(&self, client: &mut Client, error: Option<&str>) -> client::Result<bool> {
        let expected =
            Expected { instance: self.instance.as_deref(), own: self.state, ..Expected::default() };
        let change = Change {
            state: XenbusState::Closed,
            rewrite: false,
            keys: &Keys::empty(),
            removed: &[],
            error: error.map(|error| (Errno::EIO as i32, error)),
        };
        self.end.change(client, &expected, &change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::attached;
    use crate::machine::device::NewDevice;
    use ring_abi::xenbus::key::{INSTANCE, STATE};
    use xenbus::Device;
    use xenstore::server::{Config, Store};
    use xenstore::{DomId, Nodes};

    #[test]
    fn failure_of_a_device_is_reported_to_it_and_not_to_the_one_that_has_replaced_it() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        client.mkdir("/local/domain/3").unwrap();
        let device = Device::new("vif", DomId(3), 0);
        let attach = |client: &mut Client, instance: &str, state: XenbusState| {
            let attached = attached::add(client, &NewDevice::new(device.clone())).unwrap();
            client.write(&format!("{}/{INSTANCE}", device.back_path()), instance).unwrap();
            client.write(&format!("{}/{STATE}", device.front_path()), state.as_text()).unwrap();
            attached
        };
        let error_path = DeviceEnd::front(&device).error_path();
        for other in [("b", XenbusState::Connected), ("a", XenbusState::Initialising)] {
            let first = attach(&mut client, "a", XenbusState::Connected);
            let ended = Ended::read(&mut client, &device.front_path()).unwrap();
            first.remove(&mut client).unwrap();
            let second = attach(&mut client, other.0, other.1);
            assert!(!ended.close(&mut client, Some("no tap")).unwrap());
            assert!(!client.exists(&error_path).unwrap());
            assert_eq!(ended.end.state(&mut client).unwrap(), other.1);
            let ended = Ended::read(&mut client, &device.front_path()).unwrap();
            assert!(ended.close(&mut client, Some("no tap")).unwrap());
            assert_eq!(client.read_text(&error_path).unwrap(), "5 no tap");
            assert_eq!(ended.end.state(&mut client).unwrap(), XenbusState::Closed);
            second.remove(&mut client).unwrap();
        }
    }
}
