//! A device as a command has attached or found it. A command that lags, on a slow host or stopped by its user, must not act on the
//! next device of that number: each step finds this one unchanged, in the transaction that it writes in, or does nothing.
//!
//! The toolstack's nodes say which device it is, by a random text that they are written with. Stock programs read and write no
//! such key. Devices without it, as other toolstacks attach them, are told apart by their backend's `instance`, if that is ours.

use ring_abi::blkif::key::{DEV, PARAMS};
use ring_abi::xenbus::key::{INSTANCE, ONLINE, STATE};
use xenbus::error_node::{error_directory, remove_error};
use xenbus::{Device, XenbusState};
use xenstore::client::{self, Transaction};
use xenstore::{Client, DomId, Nodes};

use super::device::{self, ATTACHMENT, NewDevice, Number, libxl_path, remove_tree};
use crate::error::{Error, Result};

/// Writes a device's nodes, upon which its drivers connect.
///
/// # Errors
/// [`Error::Other`] if the domain has no nodes, as it was removed since it was found; or if it has a device of this kind
/// and number already, unless that was to be removed and is closed: a guest may close a disk long after its detaching was
/// given up.
pub fn add(client: &mut Client, new: &NewDevice) -> Result<Attached> {
    match try_add(client, new)? {
        Some(attached) => Ok(attached),
        None => {
            let name = device::name(&new.device, new.back.get(DEV));
            Err(Error::Other(format!("domain {} has a {name} already", new.device.front)))
        }
    }
}

/// Adds a device as [`add`] does, with the lowest number that no device of its kind has, whatever else is added meanwhile. `new`
/// returns the nodes of the device of a number.
pub fn add_with_free_number(
    client: &mut Client,
    domid: DomId,
    kind: &str,
    new: impl Fn(u32) -> NewDevice,
) -> Result<Attached> {
    loop {
        let taken = device::list(client, domid, kind)?;
        if let Some(attached) = try_add(client, &new(lowest_free(&taken)))? {
            return Ok(attached);
        }
    }
}

/// The lowest device number that none of these has.
fn lowest_free(taken: &[Device]) -> u32 {
    (0..).find(|id| taken.iter().all(|d| d.id != *id)).unwrap_or_default()
}

/// Adds a device; `None` if its number is taken.
fn try_add(client: &mut Client, new: &NewDevice) -> Result<Option<Attached>> {
    let device = &new.device;
    let front = device.front_path();
    // An earlier device's. The guest owns it, and may write there so often that every transaction conflicts.
    let reported = client.exists(&error_directory(&front))?;
    let clear = |tx: &mut Transaction<'_>| match device::number(tx, device)? {
        Number::Free => remove_error(tx, &front),
        _ => Ok(()),
    };
    let cleared = if reported { client.transaction(clear) } else { Ok(()) };
    if let Err(error) = cleared {
        tracing::debug!(%error, "failed to remove an earlier frontend's error");
    }
    let attachment = format!("{:032x}", rand::random::<u128>());
    let found = client.transaction(|tx| {
        let found = device::number(tx, device)?;
        if found == Number::Free {
            device::write(tx, new, &attachment)?;
        }
        Ok(found)
    })?;
    match found {
        Number::NoDomain => Err(Error::Other(format!("domain {} does not exist any more", device.front))),
        Number::Taken => Ok(None),
        Number::Free => Ok(Some(Attached::new(new, attachment))),
    }
}

/// A device that was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its kind, number and domains.
    pub device: Device,
    /// Its name for messages: `disk xvda`, `vif 0`.
    pub name: String,
    /// The path of a disk's image, for messages.
    image: Option<String>,
    identity: Identity,
}

/// Which device of its number a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    attachment: Option<Vec<u8>>,
    /// `None` too if the backend has not begun.
    instance: Option<Vec<u8>>,
}

impl Identity {
    /// Reads a device's; `None` if the toolstack has no such device.
    fn read(nodes: &mut impl Nodes, device: &Device) -> client::Result<Option<Identity>> {
        let path = libxl_path(device);
        let attachment = nodes.read_opt(&format!("{path}/{ATTACHMENT}"))?;
        if attachment.is_some() {
            return Ok(Some(Identity { attachment, instance: None }));
        }
        let instance = nodes.read_opt(&format!("{}/{INSTANCE}", device.back_path()))?;
        Ok(nodes.exists(&path)?.then_some(Identity { attachment, instance }))
    }

    /// Whether a device that is found later is the same one.
    fn is(&self, later: &Identity) -> bool {
        self.attachment == later.attachment && (self.instance.is_none() || self.instance == later.instance)
    }
}

impl Attached {
    /// A device whose nodes were written with this text.
    fn new(new: &NewDevice, attachment: String) -> Attached {
        let identity = Identity { attachment: Some(attachment.into_bytes()), instance: None };
        let (dev, params) = (new.back.get(DEV), new.back.get(PARAMS));
        Attached::with_keys(&new.device, dev, params, identity)
    }

    fn with_keys(device: &Device, dev: Option<&str>, params: Option<&str>, identity: Identity) -> Attached {
        let (name, image) = (device::name(device, dev), params.map(str::to_owned));
        Attached { device: device.clone(), name, image, identity }
    }

    /// Finds the device of this number; `None` if there is none.
    pub fn find(nodes: &mut impl Nodes, device: &Device) -> client::Result<Option<Attached>> {
        let Some(identity) = Identity::read(nodes, device)? else { return Ok(None) };
        let mut text = |key: &str| -> client::Result<Option<String>> {
            let value = nodes.read_opt(&format!("{}/{key}", libxl_path(device)))?;
            Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
        };
        let (dev, params) = (text(DEV)?, text(PARAMS)?);
        Ok(Some(Attached::with_keys(device, dev.as_deref(), params.as_deref(), identity)))
    }

    /// Lists a domain's devices of one kind in the order of their numbers.
    pub fn list(nodes: &mut impl Nodes, domid: DomId, kind: &str) -> client::Result<Vec<Attached>> {
        let devices = device::list(nodes, domid, kind)?;
        let mut found = Vec::new();
        for device in devices {
            found.extend(Attached::find(nodes, &device)?);
        }
        Ok(found)
    }

    /// Says, after it was removed, that dom0 still has what it used: its image, or its interface.
    pub fn not_released(&self) -> String {
        match &self.image {
            Some(image) => format!("dom0 has not released {image} yet"),
            None => format!("dom0 has not released the interface of {} yet", self.name),
        }
    }

    /// Whether it has neither been removed nor replaced. What was read before this is then its own.
    pub fn is_current(&self, nodes: &mut impl Nodes) -> client::Result<bool> {
        let now = Identity::read(nodes, &self.device)?;
        Ok(now.is_some_and(|now| self.identity.is(&now)))
    }

    /// Runs `body` in a transaction if the device has neither been removed nor replaced; `None` otherwise.
    fn change<R>(
        &self,
        client: &mut Client,
        mut body: impl FnMut(&mut Transaction<'_>) -> client::Result<R>,
    ) -> client::Result<Option<R>> {
        client.transaction(|tx| match self.is_current(tx)? {
            true => body(tx).map(Some),
            false => Ok(None),
        })
    }

    /// Requests that frontend and backend close: writes `online` = 0 and `state` = Closing into the backend's directory, and
    /// removes errors reported earlier. `false` if the device does not exist any more.
    ///
    /// Unlike libxl this writes Closing over Closed too: a backend whose frontend has closed still holds the image or tap, and
    /// says by Closed once more that it has released them.
    pub fn request_close(&self, client: &mut Client) -> Result<bool> {
        let path = self.device.back_path();
        // Before Closing, upon which the frontend may report that the device is in use.
        self.remove_front_error(client);
        let requested = self.change(client, |tx| {
            let state_path = format!("{path}/{STATE}");
            if !tx.exists(&state_path)? {
                return Ok(false);
            }
            remove_error(tx, &path)?;
            let was_wanted = !device::is_to_go(tx, &self.device)?;
            tx.write(&format!("{path}/{ONLINE}"), "0")?;
            // Somebody who removes the same device, whose frontend is gone, may have had it closed already.
            let is_closed = tx.read(&state_path)? == XenbusState::Closed.as_text().as_bytes();
            if !is_closed || was_wanted || tx.exists(&self.device.front_path())? {
                tx.write(&state_path, XenbusState::Closing.as_text())?;
            }
            Ok(true)
        })?;
        Ok(requested.unwrap_or(false))
    }

    /// Removes the frontend's nodes.
    pub fn remove_front(&self, client: &mut Client) -> Result<()> {
        let path = self.device.front_path();
        match self.change(client, |tx| remove_tree(tx, &path)) {
            // The guest owns them, and writes there again and again: without a transaction, which at worst removes that guest's
            // own nodes of a device that replaces this one meanwhile.
            Err(client::Error::Conflict { .. }) => {
                if self.is_current(client)? {
                    remove_tree(client, &path)?;
                }
            }
            removed => drop(removed?),
        }
        Ok(())
    }

    /// Removes the device's nodes, and its backend's parent directories if they become empty.
    pub fn remove(&self, client: &mut Client) -> Result<()> {
        self.remove_front(client)?;
        self.remove_front_error(client);
        self.change(client, |tx| device::remove_nodes(tx, &self.device))?;
        Ok(())
    }

    /// Removes the error that its frontend has reported, if the guest allows that: it owns the directory, and may write there
    /// so often that every transaction conflicts. No other one is to depend on it.
    fn remove_front_error(&self, client: &mut Client) {
        let path = self.device.front_path();
        if let Err(error) = self.change(client, |tx| remove_error(tx, &path)) {
            tracing::debug!(%error, "failed to remove the frontend's error");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::xenbus::key::BACKEND;
    use std::os::unix::net::UnixStream;
    use testkit::HookedStream;
    use xenstore::server::{Config, Store};
    use xenstore::{Access, Permission};

    fn device() -> NewDevice {
        let mut new = NewDevice::new(Device::new("vbd", DomId(3), 51712));
        new.back.set("params", "/img").set(DEV, "xvda");
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
        let attached = add(&mut client, &device()).unwrap();
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
        let error = add(&mut client, &device()).unwrap_err().to_string();
        assert_eq!(error, "domain 3 has a disk xvda already");
        client.write(&format!("{}/error", error_directory(back)), "5 failed").unwrap();
        assert_eq!(device::list(&mut client, DomId(3), "vbd").unwrap(), [device().device]);
        assert!(attached.request_close(&mut client).unwrap());
        assert_eq!(client.read_text(&format!("{back}/online")).unwrap(), "0");
        assert_eq!(client.read_text(&format!("{back}/state")).unwrap(), "5");
        attached.remove(&mut client).unwrap();
        assert!(!client.exists(front).unwrap());
        for directory in ["/local/domain/0/backend", "/local/domain/0/error"] {
            assert_eq!(client.directory(directory).unwrap(), [""; 0]);
        }
        assert!(!attached.request_close(&mut client).unwrap());
        attached.remove(&mut client).unwrap();
        assert!(device::list(&mut client, DomId(3), "vbd").unwrap().is_empty());
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
        client.set_perms(errors, &[Permission::new(DomId(3), Access::None)]).unwrap();
        let front = device.device.front_path();
        for path in [error_directory(&front), front] {
            let mut client = contended(&store, &path);
            let attached = add(&mut client, &device).unwrap();
            assert!(client.exists(&path).unwrap());
            assert!(attached.request_close(&mut client).unwrap());
            attached.remove(&mut client).unwrap();
            assert!(!client.exists(&libxl_path(&device.device)).unwrap());
        }
    }

    #[test]
    fn device_of_a_number_is_replaced_only_once_it_is_to_go_and_both_ends_are_closed() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        let device = device();
        client.mkdir("/local/domain/3").unwrap();
        let attached = add(&mut client, &device).unwrap();
        attached.request_close(&mut client).unwrap();
        for (path, replaced) in [(device.device.back_path(), false), (device.device.front_path(), true)] {
            client.write(&format!("{path}/{STATE}"), XenbusState::Closed.as_text()).unwrap();
            assert_eq!(add(&mut client, &device).is_ok(), replaced, "{path}");
        }
        let state = client.read_text(&format!("{}/{STATE}", device.device.back_path())).unwrap();
        assert_eq!(state, XenbusState::Initialising.as_text());
    }
    /// The states and the error of both ends.
    fn snapshot(client: &mut Client, device: &Device) -> Vec<Option<Vec<u8>>> {
        let ends = [device.front_path(), device.back_path()];
        let paths = ends.map(|end| [format!("{end}/{STATE}"), format!("{}/error", error_directory(&end))]);
        paths.iter().flatten().map(|path| client.read_opt(path).unwrap()).collect()
    }

    #[test]
    fn device_that_was_replaced_is_not_current_and_nothing_is_done_to_the_next_of_its_number() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        client.mkdir("/local/domain/3").unwrap();
        for kind in ["vbd", "vif"] {
            let device = Device::new(kind, DomId(3), 51712);
            let first = add(&mut client, &NewDevice::new(device.clone())).unwrap();
            let found = Attached::find(&mut client, &device).unwrap().unwrap();
            assert_eq!(found, first);
            assert!(first.request_close(&mut client).unwrap());
            for end in [device.front_path(), device.back_path()] {
                client.write(&format!("{end}/{STATE}"), XenbusState::Closed.as_text()).unwrap();
            }
            let next = add(&mut client, &NewDevice::new(device.clone())).unwrap();
            client.write(&format!("{}/error", error_directory(&device.front_path())), "5 failed").unwrap();
            let before = snapshot(&mut client, &device);
            assert!(!first.is_current(&mut client).unwrap() && next.is_current(&mut client).unwrap());
            assert!(!first.request_close(&mut client).unwrap());
            first.remove(&mut client).unwrap();
            assert_eq!(snapshot(&mut client, &device), before);
            next.remove(&mut client).unwrap();
            assert!(!next.is_current(&mut client).unwrap());
        }
    }

    #[test]
    fn devices_of_another_toolstack_are_told_apart_by_their_instance_once_they_have_one() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        let device = device().device;
        let mut find = |instance: Option<&str>| {
            client.write(&format!("{}/{BACKEND}", libxl_path(&device)), device.back_path()).unwrap();
            if let Some(instance) = instance {
                client.write(&format!("{}/{INSTANCE}", device.back_path()), instance).unwrap();
            }
            Attached::find(&mut client, &device).unwrap().unwrap()
        };
        let (early, first, second) = (find(None), find(Some("a")), find(Some("b")));
        assert!(early.is_current(&mut client).unwrap(), "its backend had not begun");
        assert!(!first.is_current(&mut client).unwrap());
        assert!(second.is_current(&mut client).unwrap());
    }

    #[test]
    fn device_without_a_number_gets_the_lowest_one_that_is_free() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        client.mkdir("/local/domain/3").unwrap();
        let new = |id| NewDevice::new(Device::new("vif", DomId(3), id));
        add(&mut client, &new(1)).unwrap();
        // Another command takes each number, while this one has chosen it.
        let taken = std::cell::Cell::new(Some(0));
        let attached = add_with_free_number(&mut client, DomId(3), "vif", |id| {
            if let Some(id) = taken.take() {
                add(&mut store.client().unwrap(), &new(id)).unwrap();
            }
            new(id)
        });
        assert_eq!(attached.unwrap().device.id, 2);
    }
}
