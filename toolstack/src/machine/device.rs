//! Writes a device's nodes in one transaction as libxl does, and removes them as libxl does.
//!
//! Source: `libxl__device_generic_add` and `libxl__destroy_device` of Xen's libxl: the frontend's directory belongs
//! to the guest and is read by the backend's domain, the backend's the other way round, and `/libxl` keeps a copy
//! of the backend's keys.

use ring_abi::xenbus::key::{BACKEND, BACKEND_ID, FRONTEND, FRONTEND_ID, ONLINE, STATE};
use xenbus::error_node::remove_error;
use xenbus::{Device, Keys, XenbusState};
use xenstore::{Access, DomId, Nodes, Permission, XsError};

/// The key in the toolstack's directory of a device that tells it from others of its number: a random text.
pub(super) const ATTACHMENT: &str = "attachment";

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

/// Names a device for messages: `disk xvda`, `vif 0`. `dev` is a disk's name in its guest.
pub fn name(device: &Device, dev: Option<&str>) -> String {
    match (device.kind.as_str(), dev) {
        ("vbd", Some(dev)) => format!("disk {dev}"),
        (kind, _) => format!("{kind} {}", device.id),
    }
}

/// Whether a device may be added with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// Yes: none has it, or one that was to be removed, and is closed.
    Free,
    /// Another device has it.
    Taken,
    /// No device may: the domain has no nodes.
    NoDomain,
}

/// Reads whether a device may be added with its number.
pub(super) fn number(nodes: &mut impl Nodes, device: &Device) -> xenstore::client::Result<Number> {
    if !nodes.exists(&format!("/local/domain/{}", device.front))? {
        return Ok(Number::NoDomain);
    }
    let taken = nodes.exists(&libxl_path(device))? && !is_gone(nodes, device)?;
    Ok(if taken { Number::Taken } else { Number::Free })
}

/// Whether a device was to be removed, and both its ends are closed.
fn is_gone(tx: &mut impl Nodes, device: &Device) -> xenstore::client::Result<bool> {
    let closed = Some(XenbusState::Closed);
    let online = tx.read_opt(&format!("{}/{ONLINE}", device.back_path()))?;
    Ok(online.as_deref() == Some(b"0")
        && tx.read_opt_as(&format!("{}/{STATE}", device.back_path()))? == closed
        && tx.read_opt_as(&format!("{}/{STATE}", device.front_path()))? == closed)
}

/// Writes a device's nodes, in place of those of an earlier one of its number, as part of a transaction.
pub(super) fn write(tx: &mut impl Nodes, new: &NewDevice, attachment: &str) -> xenstore::client::Result<()> {
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
    values(tx, &front_path, &new.front_read_only, &by_back)?;
    directory(tx, &back_path, &by_back, &new.back)?;
    value(tx, &format!("{back_path}/{FRONTEND}"), &front_path, &by_back)?;
    tx.write_each(new.back.iter().map(|(key, text)| (format!("{libxl}/{key}"), text)))?;
    tx.write(&format!("{libxl}/{ATTACHMENT}"), attachment)
}

fn directory(
    tx: &mut impl Nodes,
    path: &str,
    permissions: &[Permission],
    keys: &Keys,
) -> xenstore::client::Result<()> {
    tx.mkdir(path)?;
    tx.set_perms(path, permissions)?;
    values(tx, path, keys, permissions)
}

/// Writes keys below a node, each with the same permissions.
fn values(
    tx: &mut impl Nodes,
    path: &str,
    keys: &Keys,
    permissions: &[Permission],
) -> xenstore::client::Result<()> {
    let below = || keys.iter().map(|(key, text)| (format!("{path}/{key}"), text));
    tx.write_each(below())?;
    tx.set_perms_each(below().map(|(path, _)| path), permissions)
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

/// Removes a device's nodes, as part of a transaction, but for the error that its frontend has reported; and its backend's
/// parent directories if they become empty.
pub fn remove_nodes(tx: &mut impl Nodes, device: &Device) -> xenstore::client::Result<()> {
    let front = device.front_path();
    let back = device.back_path();
    for path in [&front, &back, &libxl_path(device)] {
        remove_tree(tx, path)?;
    }
    remove_error(tx, &back)?;
    prune(tx, &back, 2)
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
