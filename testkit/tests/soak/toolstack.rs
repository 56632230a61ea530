//! A toolstack's side of one device: its nodes and the states of both ends.

use std::thread;
use std::time::{Duration, Instant};

use ::toolstack::machine::device;
use ::toolstack::machine::progress::{self, Closed, States};
use ring_abi::DomId;
use testkit::BOUND;
use testkit::soak::{DISKS, Slot, State, VIFS};
use xenbus::{Device, DeviceEnd, XenbusState};
use xenstore::{Client, Nodes};

use super::frontends::{GuestDomain, Stop};

/// How long a device that could not be connected may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What became of an operation or a check; why it failed.
pub(crate) type Outcome = Result<(), String>;

/// The domain of a guest.
pub(crate) fn domid(guest: usize) -> DomId {
    DomId(guest as u16 + 1)
}

/// The number of a disk: xvda, xvdb, ...
pub(crate) fn vdev(slot: Slot) -> u32 {
    testkit::block::XVDA + 16 * slot.number as u32
}

/// Closes a device as a toolstack that waits, or as one that does not.
pub(crate) fn close(client: &mut Client, device: &Device, force: bool) -> Outcome {
    if force {
        return device::remove(client, device).map_err(|error| error.to_string());
    }
    match progress::close(client, device, BOUND) {
        Ok(Closed::Yes) => Ok(()),
        Ok(other) => Err(format!("{}: {other:?}", device.front_path())),
        Err(error) => Err(error.to_string()),
    }
}

/// Attaches a device while its frontend is opened. If it cannot be connected, it is closed and removed.
pub(crate) fn attach<T: Send>(
    client: &mut Client,
    guest: &GuestDomain,
    new: &device::NewDevice,
    open: impl FnOnce(&Stop) -> Option<T> + Send,
) -> Result<T, String> {
    device::add(client, new).map_err(|error| error.to_string())?;
    let stop = Stop::new();
    thread::scope(|scope| {
        let opening = scope.spawn(|| open(&stop));
        let attached = connected_or_error(client, guest, &new.device);
        if attached.is_err() {
            let undone = undo(client, &new.device);
            stop.tell();
            undone?;
        }
        let opened = opening.join().unwrap();
        attached.and_then(|()| opened.ok_or_else(|| "connected, and not opened".into()))
    })
}

/// Waits until a device is connected, or one of its ends has reported an error.
fn connected_or_error(client: &mut Client, guest: &GuestDomain, device: &Device) -> Outcome {
    let connected = Some(XenbusState::Connected);
    let errors = [DeviceEnd::front(device), DeviceEnd::back(device)].map(|end| end.error_path());
    let mut outcome = Err(String::new());
    wait(&format!("{} to connect", device.front_path()), BOUND, || {
        let reported = errors.iter().find_map(|path| client.read_opt(path).unwrap());
        let states = progress::states(client, device).unwrap();
        outcome = match reported {
            _ if guest.is_killed() => Err("the guest is killed".into()),
            Some(text) => Err(String::from_utf8_lossy(&text).into_owned()),
            None if states == (States { front: connected, back: connected }) => Ok(()),
            None => return false,
        };
        true
    })
    .and(outcome)
}

/// Closes and removes a device that could not be connected.
fn undo(client: &mut Client, device: &Device) -> Outcome {
    let closed = progress::close(client, device, CLOSE_TIMEOUT).map(drop);
    closed.and_then(|()| device::remove(client, device)).map_err(|error| error.to_string())
}

pub(crate) fn are_connected(client: &mut Client, device: &Device) -> Outcome {
    let connected = Some(XenbusState::Connected);
    let expected = States { front: connected, back: connected };
    let mut states = expected;
    wait(&format!("{} to be connected", device.front_path()), BOUND, || {
        states = progress::states(client, device).unwrap();
        states == expected
    })
    .map_err(|error| format!("{error}: {states:?}"))
}

/// Checks that a guest has nodes for the devices of a state only.
pub(crate) fn check_absent(client: &mut Client, guest: usize, state: &State) -> Outcome {
    let domid = domid(guest);
    let mut absent = Vec::new();
    if state.guests[guest].is_none() {
        absent.extend([
            format!("/local/domain/{domid}"),
            format!("/libxl/{domid}"),
            format!("/vm/guest{guest}"),
        ]);
        absent.extend(["vbd", "vif"].map(|kind| format!("/local/domain/0/backend/{kind}/{domid}")));
    }
    let mut device = |device: Device| {
        absent.extend([device.front_path(), device.back_path(), device::libxl_path(&device)]);
    };
    for number in 0..DISKS {
        let slot = Slot { guest, number };
        if state.image(slot).is_none() {
            device(Device::new("vbd", domid, vdev(slot)));
        }
    }
    for number in (0..VIFS).filter(|number| !state.has_vif(Slot { guest, number: *number })) {
        device(Device::new("vif", domid, number as u32));
    }
    match absent.into_iter().find(|path| client.exists(path).unwrap()) {
        Some(path) => Err(format!("{path} exists")),
        None => Ok(()),
    }
}

/// Counts the nodes that have values: a guest's directories of devices remain when their devices are removed.
pub(crate) fn count_nodes(client: &mut Client, path: &str) -> usize {
    // A node may be removed meanwhile.
    let Ok(children) = client.directory(path) else { return 0 };
    let parent = path.trim_end_matches('/');
    let count = |child: String| {
        let path = format!("{parent}/{child}");
        let has_value = client.read(&path).is_ok_and(|value| !value.is_empty());
        usize::from(has_value) + count_nodes(client, &path)
    };
    children.into_iter().map(count).sum()
}

/// Waits for a condition.
pub(crate) fn wait(what: &str, bound: Duration, mut is: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + bound;
    while !is() {
        if Instant::now() >= deadline {
            return Err(format!("waited {bound:?} for {what}"));
        }
        thread::park_timeout(Duration::from_micros(500));
    }
    Ok(())
}
