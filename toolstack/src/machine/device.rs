//! Writes a device's nodes in one transaction as libxl does, and removes them as libxl does.
//!
//! Source: `libxl__device_generic_add` and `libxl__destroy_device` of Xen's libxl: the frontend's directory belongs
//! to the guest and is read by the backend's domain, the backend's the other way round, and `/libxl` keeps a copy
//! of the backend's keys.

use ring_abi::xenbus::key::{BACKEND, BACKEND_ID, FRONTEND, FRONTEND_ID, ONLINE, STATE};
use xenbus::error_node::remove_error;
use xenbus::{Device, Keys, XenbusState};
use xenstore::client::{Request, Result};
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
pub(super) fn number(nodes: &mut impl Nodes, device: &Device) -> Result<Number> {
    let paths = [format!("/local/domain/{}", device.front), libxl_path(device)];
    let mut found = nodes.read_each(&paths)?.into_iter().map(is_there);
    if !found.next().unwrap_or(Ok(false))? {
        return Ok(Number::NoDomain);
    }
    let taken = found.next().unwrap_or(Ok(false))? && !is_gone(nodes, device)?;
    Ok(if taken { Number::Taken } else { Number::Free })
}

/// Whether a node that was read is there.
fn is_there(reply: Result<Vec<u8>>) -> Result<bool> {
    match reply {
        Err(e) if e.is_not_found() => Ok(false),
        reply => reply.map(|_| true),
    }
}

/// Whether a device is to be removed: its backend is told that nobody wants it any more.
pub(super) fn is_to_go(nodes: &mut impl Nodes, device: &Device) -> Result<bool> {
    let online = nodes.read_opt(&format!("{}/{ONLINE}", device.back_path()))?;
    Ok(online.as_deref() == Some(b"0"))
}

/// Whether a device was to be removed, and both its ends are closed.
fn is_gone(tx: &mut impl Nodes, device: &Device) -> Result<bool> {
    let closed = Some(XenbusState::Closed);
    Ok(is_to_go(tx, device)?
        && tx.read_opt_as(&format!("{}/{STATE}", device.back_path()))? == closed
        && tx.read_opt_as(&format!("{}/{STATE}", device.front_path()))? == closed)
}

/// Writes a device's nodes, in place of those of an earlier one of its number, as part of a transaction.
pub(super) fn write(tx: &mut impl Nodes, new: &NewDevice, attachment: &str) -> Result<()> {
    let device = &new.device;
    let front_path = device.front_path();
    let back_path = device.back_path();
    let libxl = libxl_path(device);
    let by_front = permissions(device.front, device.back);
    let by_back = permissions(device.back, device.front);
    remove_error(tx, &back_path)?;
    // Nodes of an earlier device of this number.
    let earlier = [&front_path, &back_path, &libxl];
    let mut requests = earlier.into_iter().map(|path| Request::rm(path)).collect::<Result<Vec<_>>>()?;
    requests.push(Request::write(&format!("{libxl}/{FRONTEND}"), &front_path)?);
    requests.push(Request::write(&format!("{libxl}/{BACKEND}"), &back_path)?);
    directory(&mut requests, &front_path, &by_front, &new.front)?;
    value(&mut requests, &format!("{front_path}/{BACKEND}"), &back_path, &by_front)?;
    values(&mut requests, &front_path, &new.front_read_only, &by_back)?;
    directory(&mut requests, &back_path, &by_back, &new.back)?;
    value(&mut requests, &format!("{back_path}/{FRONTEND}"), &front_path, &by_back)?;
    for (key, text) in new.back.iter() {
        requests.push(Request::write(&format!("{libxl}/{key}"), text)?);
    }
    requests.push(Request::write(&format!("{libxl}/{ATTACHMENT}"), attachment)?);
    let mut replies = tx.request_each(&requests)?.into_iter();
    for reply in replies.by_ref().take(earlier.len()) {
        unless_absent(reply.map(drop))?;
    }
    replies.try_for_each(|reply| reply.map(drop))
}

fn directory(requests: &mut Vec<Request>, path: &str, permissions: &[Permission], keys: &Keys) -> Result<()> {
    requests.push(Request::mkdir(path)?);
    requests.push(Request::set_perms(path, permissions)?);
    values(requests, path, keys, permissions)
}

/// Writes keys below a node, each with the same permissions.
fn values(requests: &mut Vec<Request>, path: &str, keys: &Keys, permissions: &[Permission]) -> Result<()> {
    keys.iter().try_for_each(|(key, text)| value(requests, &format!("{path}/{key}"), text, permissions))
}

fn value(requests: &mut Vec<Request>, path: &str, text: &str, permissions: &[Permission]) -> Result<()> {
    requests.push(Request::write(path, text)?);
    requests.push(Request::set_perms(path, permissions)?);
    Ok(())
}

/// Removes a device's nodes, as part of a transaction, but for the error that its frontend has reported; and its backend's
/// parent directories if they become empty.
pub fn remove_nodes(tx: &mut impl Nodes, device: &Device) -> Result<()> {
    let front = device.front_path();
    let back = device.back_path();
    for path in [&front, &back, &libxl_path(device)] {
        remove_tree(tx, path)?;
    }
    remove_error(tx, &back)?;
    prune(tx, &back, 2)
}

/// Removes a node and its children, if it exists.
pub fn remove_tree(nodes: &mut impl Nodes, path: &str) -> Result<()> {
    unless_absent(nodes.rm(path))
}

/// A removal's outcome, where a node that was absent is no error.
fn unless_absent(removed: Result<()>) -> Result<()> {
    match removed {
        Err(e) if e.store_error() == Some(XsError::ENOENT) => Ok(()),
        done => done,
    }
}

/// Removes up to `levels` parent directories of `path` that have become empty.
fn prune(nodes: &mut impl Nodes, path: &str, levels: usize) -> Result<()> {
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
pub fn list(nodes: &mut impl Nodes, domid: DomId, kind: &str) -> Result<Vec<Device>> {
    let names = match nodes.directory(&format!("/libxl/{domid}/device/{kind}")) {
        Err(e) if e.is_not_found() => Vec::new(),
        names => names?,
    };
    let mut ids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids.into_iter().map(|id| Device::new(kind, domid, id)).collect())
}
