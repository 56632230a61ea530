//! What a device leaves in the store.

use ring_abi::DomId;
use toolstack::machine::device;
use xenbus::Device;
use xenstore::{Client, Nodes};

use super::state::{DISKS, Guest, VIFS};
use crate::block::XVDA;

/// The device of a disk: xvda, xvdb, ...
pub fn disk_device(domid: DomId, number: usize) -> Device {
    Device::new("vbd", domid, XVDA + 16 * number as u32)
}

/// The device of an interface.
pub fn vif_device(domid: DomId, number: usize) -> Device {
    Device::new("vif", domid, number as u32)
}

/// Checks that there are no nodes of a guest's devices other than `devices`.
///
/// # Errors
/// A node that exists.
pub fn check_absent(client: &mut Client, domid: DomId, devices: &Guest) -> Result<(), String> {
    let disks = (0..DISKS).filter(|number| devices.disks[*number].is_none());
    let vifs = (0..VIFS).filter(|number| !devices.vifs[*number]);
    let absent =
        disks.map(|number| disk_device(domid, number)).chain(vifs.map(|number| vif_device(domid, number)));
    for device in absent {
        for path in [device.front_path(), device.back_path(), device::libxl_path(&device)] {
            check_no_node(client, &path)?;
        }
    }
    Ok(())
}

/// Checks that there are no nodes of a guest.
///
/// # Errors
/// A node that exists.
pub fn check_no_guest(client: &mut Client, domid: DomId) -> Result<(), String> {
    let of_backends = ["backend/vbd", "backend/vif", "error/backend/vbd", "error/backend/vif"];
    let of_backends = of_backends.map(|kind| format!("/local/domain/0/{kind}/{domid}"));
    let own = [format!("/local/domain/{domid}"), format!("/libxl/{domid}")];
    of_backends.iter().chain(&own).try_for_each(|path| check_no_node(client, path))
}

fn check_no_node(client: &mut Client, path: &str) -> Result<(), String> {
    match client.exists(path) {
        Ok(false) => Ok(()),
        Ok(true) => Err(format!("{path} exists")),
        Err(error) => Err(error.to_string()),
    }
}

/// Counts the nodes that have values: a guest's directories of devices remain when their devices are removed.
pub fn count_values(client: &mut Client) -> usize {
    count_below(client, "")
}

fn count_below(client: &mut Client, path: &str) -> usize {
    // A node may be removed meanwhile.
    let Ok(children) = client.directory(if path.is_empty() { "/" } else { path }) else { return 0 };
    let count = |child: String| {
        let path = format!("{path}/{child}");
        let has_value = client.read(&path).is_ok_and(|value| !value.is_empty());
        usize::from(has_value) + count_below(client, &path)
    };
    children.into_iter().map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use toolstack::machine::attached;
    use xenstore::server::{Config, Store};

    #[test]
    fn node_of_a_device_that_should_not_exist_is_found_at_either_end() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        let domid = DomId(3);
        let devices = Guest { disks: [None, Some(1), None], vifs: [true, false] };
        client.mkdir("/local/domain/3").unwrap();
        for device in [disk_device(domid, 1), vif_device(domid, 0)] {
            attached::add(&mut client, &device::NewDevice::new(device)).unwrap();
        }
        assert_eq!(check_absent(&mut client, domid, &devices), Ok(()));
        let before = count_values(&mut client);
        for path in [disk_device(domid, 2).back_path(), vif_device(domid, 1).front_path()] {
            client.write(&format!("{path}/state"), "6").unwrap();
            assert_eq!(check_absent(&mut client, domid, &devices), Err(format!("{path} exists")));
            assert_eq!(count_values(&mut client), before + 1);
            client.rm(&path).unwrap();
        }
        assert!(check_no_guest(&mut client, domid).is_err());
        assert_eq!(check_no_guest(&mut client, DomId(4)), Ok(()));
    }
}
