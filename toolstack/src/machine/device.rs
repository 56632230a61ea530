//! Writes a device's nodes in one transaction as libxl does, and removes them as libxl does.
//!
//! Source: `libxl__device_generic_add` and `libxl__destroy_device` of Xen's libxl: the frontend's directory belongs
//! to the guest and is read by the backend's domain, the backend's the other way round, and `/libxl` keeps a copy
//! of the backend's keys.

use ring_abi::xenbus::key::{BACKEND, BACKEND_ID, FRONTEND, FRONTEND_ID, ONLINE, STATE};
use xenbus::error_node::remove_error;
use xenbus::{Device, Keys, XenbusState};
use xenstore::{Access, Client, DomId, Nodes, Permission, XsError};

use crate::error::{Error, Result};

/// The nodes of a device to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// The device's kind, number and domains.
    pub device: Device,
    /// The frontend's keys.
    pub front: Keys,
    /// Keys in the frontend's directory that the guest may not write.
    pub front_read_only: Keys,
    /// The backend's keys.
    pub back: Keys,
}

impl NewDevice {
    /// Returns a device with the keys that every device has.
    pub fn new(device: Device) -> NewDevice {
        let initialising = XenbusState::Initialising.as_text();
        let front = Keys::default().with(BACKEND_ID, device.back).with(STATE, initialising);
        let back = Keys::default().with(FRONTEND_ID, device.front).with(ONLINE, 1).with(STATE, initialising);
        NewDevice { device, front, back, front_read_only: Keys::default() }
    }
}

/// Returns `/libxl/<domain>/device/<kind>/<id>`.
pub fn libxl_path(device: &Device) -> String {
    format!("/libxl/{}/device/{}/{}", device.front, device.kind, device.id)
}

/// Permissions of a node that one domain owns and another reads.
fn permissions(owner: DomId, reader: DomId) -> [Permission; 2] {
    [Permission::new(owner, Access::None), Permission::new(reader, Access::Read)]
}

/// Writes a device's nodes, upon which its drivers connect.
///
/// # Errors
/// [`Error::Other`] if the domain has no nodes, as it was removed since it was found; or if it has a device of this kind
/// and number already, unless that was to be removed and is closed: a guest may close a disk long after its detaching was
/// given up.
pub fn add(client: &mut Client, new: &NewDevice) -> Result<()> {
    let mut refusal = refusal(client, &new.device)?;
    if refusal.is_none() {
        // An earlier device's.
        remove_front_error(client, &new.device);
        refusal = client.transaction(|tx| {
            let refusal = self::refusal(tx, &new.device)?;
            if refusal.is_none() {
                write(tx, new)?;
            }
            Ok(refusal)
        })?;
    }
    refusal.map_or(Ok(()), |why| Err(Error::Other(why)))
}

/// Why a device cannot be added, if so.
fn refusal(nodes: &mut impl Nodes, device: &Device) -> xenstore::client::Result<Option<String>> {
    let Device { kind, id, front, .. } = device;
    if !nodes.exists(&format!("/local/domain/{front}"))? {
        return Ok(Some(format!("domain {front} does not exist any more")));
    }
    if nodes.exists(&libxl_path(device))? && !is_gone(nodes, device)? {
        return Ok(Some(format!("domain {front} has a {kind} with the number {id} already")));
    }
    Ok(None)
}

/// Whether a device was to be removed, and both its ends are closed.
fn is_gone(tx: &mut impl Nodes, device: &Device) -> xenstore::client::Result<bool> {
    let closed = Some(XenbusState::Closed);
    let online = tx.read_opt(&format!("{}/{ONLINE}", device.back_path()))?;
    Ok(online.as_deref() == Some(b"0")
        && tx.read_opt_as(&format!("{}/{STATE}", device.back_path()))? == closed
        && tx.read_opt_as(&format!("{}/{STATE}", device.front_path()))? == closed)
}

fn write(tx: &mut impl Nodes, new: &NewDevice) -> xenstore::client::Result<()> {
    let device = &new.device;
    let front_path = device.front_path();
    let back_path = device.back_path();
    let libxl = libxl_path(device);
    let by_front = permissions(device.front, device.back);
    let by_back = permissions(device.back, device.front);
    // Nodes of an earlier device of this number.
    for path in [&front_path, &back_path, &libxl] {
        remove_tree(tx, path)?;
    }
    remove_error(tx, &back_path)?;
    tx.write(&format!("{libxl}/{FRONTEND}"), &front_path)?;
    tx.write(&format!("{libxl}/{BACKEND}"), &back_path)?;
    directory(tx, &front_path, &by_front, &new.front)?;
    value(tx, &format!("{front_path}/{BACKEND}"), &back_path, &by_front)?;
    for (key, text) in new.front_read_only.iter() {
        value(tx, &format!("{front_path}/{key}"), text, &by_back)?;
    }
    directory(tx, &back_path, &by_back, &new.back)?;
    value(tx, &format!("{back_path}/{FRONTEND}"), &front_path, &by_back)?;
    for (key, text) in new.back.iter() {
        tx.write(&format!("{libxl}/{key}"), text)?;
    }
    Ok(())
}

fn directory(
    tx: &mut impl Nodes,
    path: &str,
    permissions: &[Permission],
    keys: &Keys,
) -> xenstore::client::Result<()> {
    tx.mkdir(path)?;
    tx.set_perms(path, permissions)?;
    keys.iter().try_for_each(|(key, text)| value(tx, &format!("{path}/{key}"), text, permissions))
}

fn value(
    tx: &mut impl Nodes,
    path: &str,
    text: &str,
    permissions: &[Permission],
) -> xenstore::client::Result<()> {
    tx.write(path, text)?;
    tx.set_perms(path, permissions)
}

/// Requests that frontend and backend close: writes `online` = 0 and `state` = Closing into the backend's directory, and
/// removes errors reported earlier. `false` if that does not exist.
///
/// Unlike libxl this writes Closing over Closed too: a backend whose frontend has closed still holds the image or tap, and
/// says by Closed once more that it has released them.
pub fn request_close(client: &mut Client, device: &Device) -> Result<bool> {
    let path = device.back_path();
    // Before Closing, upon which the frontend may report that the device is in use.
    remove_front_error(client, device);
    Ok(client.transaction(|tx| {
        let state_path = format!("{path}/{STATE}");
        if !tx.exists(&state_path)? {
            return Ok(false);
        }
        remove_error(tx, &path)?;
        tx.write(&format!("{path}/{ONLINE}"), "0")?;
        tx.write(&state_path, XenbusState::Closing.as_text())?;
        Ok(true)
    })?)
}

/// Removes a device's nodes, and its backend's parent directories if they become empty.
pub fn remove(client: &mut Client, device: &Device) -> Result<()> {
    // The guest owns it, and could make the transaction conflict.
    remove_tree(client, &device.front_path())?;
    client.transaction(|tx| remove_nodes(tx, device))?;
    remove_front_error(client, device);
    Ok(())
}

/// Removes a device's nodes as [`remove`] does, as part of a transaction, but for the error that its frontend has reported.
pub fn remove_nodes(tx: &mut impl Nodes, device: &Device) -> xenstore::client::Result<()> {
    let front = device.front_path();
    let back = device.back_path();
    for path in [&front, &back, &libxl_path(device)] {
        remove_tree(tx, path)?;
    }
    remove_error(tx, &back)?;
    prune(tx, &back, 2)
}

/// Removes the error that a device's frontend has reported, if the guest allows that: it owns the directory, and may write
/// there so often that every transaction conflicts. No other one is to depend on it.
fn remove_front_error(client: &mut Client, device: &Device) {
    let path = device.front_path();
    if let Err(error) = client.transaction(|tx| remove_error(tx, &path)) {
        tracing::debug!(%error, "failed to remove the frontend's error");
    }
}

/// Removes a node and its children, if it exists.
pub fn remove_tree(nodes: &mut impl Nodes, path: &str) -> xenstore::client::Result<()> {
    match nodes.rm(path) {
        Err(e) if e.store_error() == Some(XsError::ENOENT) => Ok(()),
        done => done,
    }
}

/// Removes up to `levels` parent directories of `path` that have become empty.
fn prune(nodes: &mut impl Nodes, path: &str, levels: usize) -> xenstore::client::Result<()> {
    let mut path = path;
    for _ in 0..levels {
        let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
        match nodes.directory(parent) {
            Ok(children) if children.is_empty() => remove_tree(nodes, parent)?,
            Err(e) if !e.is_not_found() => return Err(e),
            _ => return Ok(()),
        }
        path = parent;
    }
    Ok(())
}

/// Lists a domain's devices of one kind in the order of their numbers: those in `/libxl`, which the guest cannot write.
pub fn list(nodes: &mut impl Nodes, domid: DomId, kind: &str) -> xenstore::client::Result<Vec<Device>> {
    let names = match nodes.directory(&format!("/libxl/{domid}/device/{kind}")) {
        Err(e) if e.is_not_found() => Vec::new(),
        names => names?,
    };
    let mut ids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids.into_iter().map(|id| Device::new(kind, domid, id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use testkit::HookedStream;
    use xenbus::error_node::error_directory;
    use xenstore::server::{Config, Store};

    fn device() -> NewDevice {
        let mut new = NewDevice::new(Device::new("vbd", DomId(3), 51712));
        new.back.set("params", "/img");
        new.front_read_only.set("mtu", 1500);
        new
    }

    fn perms(client: &mut Client, path: &str) -> String {
        client.get_perms(path).unwrap().iter().map(Permission::to_string).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn device_nodes_have_libxls_layout_and_permissions_and_are_removed() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        client.mkdir("/local/domain/0/backend").unwrap();
        client.mkdir("/local/domain/0/error").unwrap();
        // Its domain was removed meanwhile.
        assert!(add(&mut client, &device()).unwrap_err().to_string().contains("does not exist any more"));
        assert!(!client.exists("/libxl/3").unwrap());
        client.mkdir("/local/domain/3").unwrap();
        add(&mut client, &device()).unwrap();
        let front = "/local/domain/3/device/vbd/51712";
        let back = "/local/domain/0/backend/vbd/3/51712";
        assert_eq!(client.read_text(&format!("{front}/backend")).unwrap(), back);
        assert_eq!(client.read_text(&format!("{back}/frontend")).unwrap(), front);
        assert_eq!(client.read_text(&format!("{back}/params")).unwrap(), "/img");
        assert_eq!(client.read_text("/libxl/3/device/vbd/51712/params").unwrap(), "/img");
        for path in [front.to_owned(), format!("{front}/state"), format!("{front}/backend")] {
            assert_eq!(perms(&mut client, &path), "n3,r0", "{path}");
        }
        for path in [back.to_owned(), format!("{back}/state"), format!("{front}/mtu")] {
            assert_eq!(perms(&mut client, &path), "n0,r3", "{path}");
        }
        assert!(add(&mut client, &device()).unwrap_err().to_string().contains("51712 already"));
        client.write(&format!("{}/error", error_directory(back)), "5 failed").unwrap();
        assert_eq!(list(&mut client, DomId(3), "vbd").unwrap(), [device().device]);
        assert!(request_close(&mut client, &device().device).unwrap());
        assert_eq!(client.read_text(&format!("{back}/online")).unwrap(), "0");
        assert_eq!(client.read_text(&format!("{back}/state")).unwrap(), "5");
        remove(&mut client, &device().device).unwrap();
        assert!(!client.exists(front).unwrap());
        for directory in ["/local/domain/0/backend", "/local/domain/0/error"] {
            assert_eq!(client.directory(directory).unwrap(), [""; 0]);
        }
        assert!(!request_close(&mut client, &device().device).unwrap());
        remove(&mut client, &device().device).unwrap();
        assert!(list(&mut client, DomId(3), "vbd").unwrap().is_empty());
    }

    /// A connection to the store; before each of its requests a guest writes a node of its own.
    fn contended(store: &Store, path: &str) -> Client {
        let (stream, other) = UnixStream::pair().unwrap();
        store.handle().connect(other).unwrap();
        let (guest, other) = UnixStream::pair().unwrap();
        store.handle().introduce(DomId(3), other).unwrap();
        let mut guest = Client::new(guest);
        let path = path.to_owned();
        Client::new(HookedStream::new(Box::new(stream), move || {
            // ENOENT or EACCES where it is not the guest's yet, or any more.
            let _ = guest.write(&path, "");
        }))
    }

    #[test]
    fn guest_that_writes_its_nodes_again_and_again_keeps_no_device_from_closing() {
        let store = Store::spawn(Config::default()).unwrap();
        let device = device();
        let mut client = store.client().unwrap();
        let errors = "/local/domain/3/error";
        client.mkdir(errors).unwrap();
        client.set_perms(errors, &permissions(DomId(3), DomId::DOM0)).unwrap();
        let front = device.device.front_path();
        for path in [error_directory(&front), front] {
            let mut client = contended(&store, &path);
            add(&mut client, &device).unwrap();
            assert!(client.exists(&path).unwrap());
            assert!(request_close(&mut client, &device.device).unwrap());
            remove(&mut client, &device.device).unwrap();
            assert!(!client.exists(&libxl_path(&device.device)).unwrap());
        }
    }

    #[test]
    fn device_of_a_number_is_replaced_only_once_it_is_to_go_and_both_ends_are_closed() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        let device = device();
        client.mkdir("/local/domain/3").unwrap();
        add(&mut client, &device).unwrap();
        request_close(&mut client, &device.device).unwrap();
        for (path, replaced) in [(device.device.back_path(), false), (device.device.front_path(), true)] {
            client.write(&format!("{path}/{STATE}"), XenbusState::Closed.as_text()).unwrap();
            assert_eq!(add(&mut client, &device).is_ok(), replaced, "{path}");
        }
        let state = client.read_text(&format!("{}/{STATE}", device.device.back_path())).unwrap();
        assert_eq!(state, XenbusState::Initialising.as_text());
    }
}
