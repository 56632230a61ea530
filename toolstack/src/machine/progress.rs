//! Waiting for devices: until both ends are connected, or closed, or something says that it will not happen.

use std::time::{Duration, Instant};

use xenstore::xenbus::Device;
use xenstore::{Client, Nodes, XenbusState};

use super::device::{self, error_path};
use super::process;
use crate::error::{Error, Result};

/// How long a wait sleeps on the store before it looks whether the guest's process is still there.
const SLICE: Duration = Duration::from_millis(50);

/// How long a device that could not be connected may take to close before its nodes are removed.
const GRACE: Duration = Duration::from_secs(2);

/// Both ends of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    /// The frontend's; `None` when its node is gone.
    pub front: Option<XenbusState>,
    /// The backend's.
    pub back: Option<XenbusState>,
}

/// What both ends say.
///
/// # Errors
/// The store's.
pub fn states(client: &mut Client, device: &Device) -> Result<States> {
    let mut read = |path: String| -> Result<Option<XenbusState>> {
        Ok(client.read_opt(&format!("{path}/state"))?.map(|bytes| {
            std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
        }))
    };
    Ok(States { front: read(device.front_path())?, back: read(device.back_path())? })
}

/// Waits until every device is connected at both ends. `check` is asked in between whether to go on.
///
/// # Errors
/// A driver gave up, with what it said; `check`'s; the time is over.
pub fn wait_connected(
    client: &mut Client,
    devices: &[Device],
    bound: Duration,
    mut check: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut pending: Vec<&Device> = devices.iter().collect();
    wait(client, devices, bound, |client| {
        let mut left = Vec::new();
        for device in pending.drain(..) {
            if !is_connected(client, device)? {
                left.push(device);
            }
        }
        pending = left;
        if pending.is_empty() {
            return Ok(true);
        }
        check().map(|()| false)
    })
    .and_then(|done| if done { Ok(()) } else { Err(too_slow(client, devices, bound)) })
}

/// Whether a device is connected.
///
/// # Errors
/// One of its drivers gave up, or its nodes are gone.
fn is_connected(client: &mut Client, device: &Device) -> Result<bool> {
    let connected = Some(XenbusState::Connected);
    let now = states(client, device)?;
    if now == (States { front: connected, back: connected }) {
        return Ok(true);
    }
    let name = describe(client, device);
    if let Some(complaint) = complaint(client, device)? {
        return Err(Error::Other(format!("{name}: {complaint}")));
    }
    match now {
        States { front: None, .. } | States { back: None, .. } => {
            Err(Error::Other(format!("{name}: its nodes were removed")))
        }
        _ => Ok(false),
    }
}

/// What a driver wrote where toolstacks look for errors.
fn complaint(client: &mut Client, device: &Device) -> Result<Option<String>> {
    for end in [device.back_path(), device.front_path()] {
        if let Some(text) = client.read_opt(&format!("{}/error", error_path(&end)))? {
            let text = String::from_utf8_lossy(&text).into_owned();
            // "<errno> <text>": the number is for programs.
            let words = text.split_once(' ').map_or(text.as_str(), |(_, words)| words).to_owned();
            return Ok(Some(words));
        }
    }
    Ok(None)
}

/// What people call a device: `disk xvda`, `vif 0`.
pub fn describe(client: &mut Client, device: &Device) -> String {
    let dev = client.read_text(&format!("{}/dev", device::libxl_path(device)));
    match (device.kind.as_str(), dev) {
        ("vbd", Ok(dev)) => format!("disk {dev}"),
        (kind, _) => format!("{kind} {}", device.id),
    }
}

fn too_slow(client: &mut Client, devices: &[Device], bound: Duration) -> Error {
    let mut late = Vec::new();
    for device in devices {
        let name = describe(client, device);
        match states(client, device) {
            Ok(States { front, back }) if front != back || front != Some(XenbusState::Connected) => {
                let word = |s: Option<XenbusState>| s.map_or("gone", XenbusState::name);
                late.push(format!("{name} (frontend {}, backend {})", word(front), word(back)));
            }
            _ => {}
        }
    }
    Error::Other(format!("not connected within {} s: {}", bound.as_secs(), late.join(", ")))
}

/// Asks a device to close and waits until its backend has, or is gone. `false` when it had not by then.
///
/// # Errors
/// The store's.
pub fn close(client: &mut Client, device: &Device, bound: Duration) -> Result<bool> {
    if !device::ask_to_close(client, device)? {
        return Ok(true);
    }
    wait(client, std::slice::from_ref(device), bound, |client| {
        let back = states(client, device)?.back;
        Ok(matches!(back, None | Some(XenbusState::Closed)))
    })
}

/// Watches the devices and asks `done` again after every event; `false` once the time is over.
fn wait(
    client: &mut Client,
    devices: &[Device],
    bound: Duration,
    mut done: impl FnMut(&mut Client) -> Result<bool>,
) -> Result<bool> {
    let paths: Vec<String> = devices
        .iter()
        .flat_map(|d| [d.front_path(), d.back_path()])
        .flat_map(|end| [format!("{end}/state"), error_path(&end)])
        .collect();
    for path in &paths {
        client.watch(path, "progress")?;
    }
    let outcome = until(client, Instant::now() + bound, &mut done);
    for path in &paths {
        client.unwatch(path, "progress")?;
    }
    outcome
}

fn until(
    client: &mut Client,
    end: Instant,
    done: &mut impl FnMut(&mut Client) -> Result<bool>,
) -> Result<bool> {
    loop {
        if done(client)? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        client.wait_event(Some(SLICE))?;
        while client.poll_event()?.is_some() {}
    }
}

/// Waits until a device that was just added is connected; removes it when it cannot be.
///
/// # Errors
/// Why it cannot be.
pub fn settle(client: &mut Client, device: &Device, bound: Duration) -> Result<()> {
    let interrupted = process::interrupted()?;
    let outcome =
        wait_connected(client, std::slice::from_ref(device), bound, || process::go_on(&interrupted));
    if outcome.is_err() {
        close(client, device, GRACE)?;
        device::remove(client, device)?;
    }
    outcome
}

/// Detaches a device: both ends close, its nodes go. With `force` they go even where the guest does not let go.
///
/// # Errors
/// The guest does not let go in time; the device then stays as it is.
pub fn detach(client: &mut Client, device: &Device, bound: Duration, force: bool) -> Result<()> {
    if !close(client, device, bound)? && !force {
        let name = describe(client, device);
        let what =
            format!("{name}: the guest did not let go within {} s (--force removes it)", bound.as_secs());
        return Err(Error::Other(what));
    }
    device::remove(client, device)
}
