//! Waits until a device's frontend and backend are connected or closed, or report an error.

use std::time::{Duration, Instant};

use ring_abi::xenbus::key::STATE;
use xenbus::error_node::error_directory;
use xenbus::{Device, XenbusState};
use xenstore::{Client, Nodes};

use super::attached::Attached;
use super::device::is_to_go;
use super::{Machine, process};
use crate::control::client as control;
use crate::dir::Dir;
use crate::error::{Error, Result};

/// How long a wait sleeps on the store before it checks that the guest's process still runs.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The longest part of a driver's error that is shown, in characters.
const DRIVER_ERROR_MAX: usize = 256;

/// How long a device that could not be connected, or that is removed by force, may take to close before its nodes are
/// removed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The states of a device's frontend and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    /// The frontend's state; `None` if its node does not exist.
    pub front: Option<XenbusState>,
    /// The backend's state; `None` if its node does not exist.
    pub back: Option<XenbusState>,
}

/// Reads the states of a device's frontend and backend.
pub fn states(client: &mut Client, device: &Device) -> Result<States> {
    let mut read = |path: String| -> Result<Option<XenbusState>> {
        Ok(client.read_opt(&format!("{path}/{STATE}"))?.map(|bytes| {
            std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
        }))
    };
    Ok(States { front: read(device.front_path())?, back: read(device.back_path())? })
}

/// Waits until every device's frontend and backend are connected. `check` is called repeatedly meanwhile.
///
/// # Errors
/// The error that a driver reported; that of `check`; [`Error::Other`] if the timeout expires, with what the dom0 in `dir`
/// waits for.
pub fn wait_connected(
    client: &mut Client,
    dir: &Dir,
    devices: &[Attached],
    timeout: Duration,
    mut check: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut pending: Vec<&Attached> = devices.iter().collect();
    wait(client, devices, timeout, |client| {
        let mut still_pending = Vec::new();
        for device in pending.drain(..) {
            if !is_connected(client, device)? {
                still_pending.push(device);
            }
        }
        pending = still_pending;
        if pending.is_empty() {
            return Ok(true);
        }
        check().map(|()| false)
    })
    .and_then(|done| if done { Ok(()) } else { Err(timed_out(client, dir, devices, timeout)) })
}

/// Whether a device is connected; an error if one of its drivers reported one, or it was removed or replaced, or is to be.
fn is_connected(client: &mut Client, attached: &Attached) -> Result<bool> {
    let Attached { device, name, .. } = attached;
    let connected = Some(XenbusState::Connected);
    let now = states(client, device)?;
    let error = driver_error(client, device)?;
    // After the error: a frontend reports that its backend closes.
    let is_to_go = is_to_go(client, device)?;
    let is_current = attached.is_current(client)?;
    if is_current && now == (States { front: connected, back: connected }) {
        return Ok(true);
    }
    if !is_current || is_to_go {
        return Err(Error::Other(format!("{name}: another command has detached it")));
    }
    if let Some(error) = error {
        return Err(Error::Other(format!("{name}: {error}")));
    }
    match now {
        States { front: None, .. } | States { back: None, .. } => {
            Err(Error::Other(format!("{name}: its nodes were removed")))
        }
        _ => Ok(false),
    }
}

/// Reads the error that the backend or the frontend reported, if any (`xenbus_dev_error` of Linux).
fn driver_error(client: &mut Client, device: &Device) -> Result<Option<String>> {
    for end in [device.back_path(), device.front_path()] {
        if let Some(text) = client.read_opt(&format!("{}/error", error_directory(&end)))? {
            let text = String::from_utf8_lossy(&text);
            // The format is "<errno> <text>".
            let message = text.split_once(' ').map_or(&*text, |(_, message)| message);
            return Ok(Some(printable(message)));
        }
    }
    Ok(None)
}

/// The start of a text that a guest may have written, in which characters that a terminal may obey are escaped.
fn printable(text: &str) -> String {
    let mut printable = String::new();
    for char in text.chars().take(DRIVER_ERROR_MAX) {
        match char {
            '\'' | '"' => printable.push(char),
            _ => printable.extend(char.escape_debug()),
        }
    }
    if text.chars().nth(DRIVER_ERROR_MAX).is_some() {
        printable.push_str("...");
    }
    printable
}

fn timed_out(client: &mut Client, dir: &Dir, devices: &[Attached], timeout: Duration) -> Error {
    let mut late = Vec::new();
    for Attached { device, name, .. } in devices {
        match states(client, device) {
            Ok(States { front, back }) if front != back || front != Some(XenbusState::Connected) => {
                let state = |s: Option<XenbusState>| s.map_or("gone", XenbusState::name);
                let served = control::devices(dir, device.front.0);
                let error = served.find(&device.kind, device.id).and_then(|known| known.error.as_deref());
                let error = error.map_or_else(String::new, |error| format!("; {error}"));
                late.push(format!("{name} (frontend {}, backend {}{error})", state(front), state(back)));
            }
            _ => {}
        }
    }
    Error::Other(format!("not connected within {} s: {}", timeout.as_secs(), late.join(", ")))
}

/// What became of a request to close a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Both ends are closed or removed.
    Yes,
    /// The frontend has reported that the device is in use; it closes once it is not.
    InUse,
    /// The time is up; the states of its ends then.
    TimedOut(States),
}

/// Requests that a device close, and waits until its backend is closed or removed, and its frontend is, or was never
/// begun: a frontend that closes later would write its state into the node of the next device of this number.
pub fn close(client: &mut Client, attached: &Attached, timeout: Duration) -> Result<Closed> {
    if !attached.request_close(client)? {
        return Ok(Closed::Yes);
    }
    let device = &attached.device;
    let mut in_use = false;
    let mut last = states(client, device)?;
    let closed = wait(client, std::slice::from_ref(attached), timeout, |client| {
        last = states(client, device)?;
        in_use = is_in_use(client, device)?;
        if !attached.is_current(client)? {
            in_use = false;
            return Ok(true);
        }
        Ok(in_use || last.are_closed())
    })?;
    Ok(match (closed, in_use) {
        (_, true) => Closed::InUse,
        (true, _) => Closed::Yes,
        (false, _) => Closed::TimedOut(last),
    })
}

/// Removes a device whose frontend has not closed it. Whether its backend has closed it, which closes a device whose frontend
/// is gone.
fn remove_by_force(client: &mut Client, attached: &Attached) -> Result<bool> {
    attached.remove_front(client)?;
    attached.request_close(client)?;
    let closed = wait(client, std::slice::from_ref(attached), CLOSE_TIMEOUT, |client| {
        Ok(states(client, &attached.device)?.are_closed() || !attached.is_current(client)?)
    })?;
    attached.remove(client)?;
    Ok(closed)
}

impl States {
    /// Whether the backend is closed, and the frontend too, or never connected.
    pub fn are_closed(self) -> bool {
        use XenbusState::{Closed, Initialising};
        matches!(self.back, None | Some(Closed)) && matches!(self.front, None | Some(Closed | Initialising))
    }
}

/// Whether the frontend has reported that the device is in use (as Linux's blkfront does, by EBUSY).
fn is_in_use(client: &mut Client, device: &Device) -> Result<bool> {
    let text = client.read_opt(&format!("{}/error", error_directory(&device.front_path())))?;
    let errno = (nix::errno::Errno::EBUSY as i32).to_string();
    Ok(text.is_some_and(|text| text.split(|byte| *byte == b' ').next() == Some(errno.as_bytes())))
}

/// Watches the devices and calls `done` after every event until it returns `true`; `false` if the timeout expires.
fn wait(
    client: &mut Client,
    devices: &[Attached],
    timeout: Duration,
    mut done: impl FnMut(&mut Client) -> Result<bool>,
) -> Result<bool> {
    let paths: Vec<String> = devices
        .iter()
        .flat_map(|Attached { device, .. }| [device.front_path(), device.back_path()])
        .flat_map(|end| [format!("{end}/{STATE}"), error_directory(&end)])
        .collect();
    for path in &paths {
        client.watch(path, "progress")?;
    }
    let outcome = wait_until(client, Instant::now() + timeout, &mut done);
    for path in &paths {
        client.unwatch(path, "progress")?;
    }
    outcome
}

fn wait_until(
    client: &mut Client,
    deadline: Instant,
    done: &mut impl FnMut(&mut Client) -> Result<bool>,
) -> Result<bool> {
    loop {
        if done(client)? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        client.wait_event(Some(POLL_INTERVAL))?;
        while client.poll_event()?.is_some() {}
    }
}

/// Waits until a device that was just added is connected; removes its nodes if it is not.
///
/// # Errors
/// Those of [`wait_connected`]; [`Error::Other`] if the command is interrupted.
pub fn wait_attached(client: &mut Client, dir: &Dir, attached: &Attached, timeout: Duration) -> Result<()> {
    let interrupted = process::interrupt_flag()?;
    let outcome = wait_connected(client, dir, std::slice::from_ref(attached), timeout, || {
        process::check_interrupted(&interrupted)
    });
    if outcome.is_err() {
        close(client, attached, CLOSE_TIMEOUT)?;
        attached.remove(client)?;
    }
    outcome
}

/// Detaches a device: waits until it is closed, by which dom0 has released its image or interface, and removes its nodes.
/// With `force` they are removed even if the guest has it in use, or it is not closed in time.
///
/// # Errors
/// [`Error::Other`] if the device is not closed in time, or dom0 does not run; its nodes then remain, and are removed by
/// the next attempt, or once another device of this number is attached. With `force`: if dom0 has not released the image or
/// interface of the device that was removed.
pub fn detach(machine: &mut Machine, attached: &Attached, timeout: Duration, force: bool) -> Result<()> {
    let dom0 = machine.require_dom0();
    if !force {
        // The guest would give the device up, and nobody would close it at the other end.
        dom0?;
    } else if dom0.is_err() {
        return attached.remove(&mut machine.store);
    }
    let Attached { device, name, .. } = attached;
    let why = match close(&mut machine.store, attached, timeout)? {
        Closed::Yes => return attached.remove(&mut machine.store),
        _ if force => {
            return match remove_by_force(&mut machine.store, attached)? {
                true => Ok(()),
                false => Err(Error::Other(format!("{name} was removed, but {}", attached.not_released()))),
            };
        }
        Closed::TimedOut(states) => not_closed(&machine.dir, device, states, timeout),
        Closed::InUse => "the guest has it in use, and closes it once it has not".to_owned(),
    };
    Err(Error::Other(format!("{name}: {why} (--force removes it)")))
}

/// Says which end has not closed a device.
fn not_closed(dir: &Dir, device: &Device, states: States, timeout: Duration) -> String {
    let guest_closed = States { back: None, ..states }.are_closed();
    let who = match in_flight(dir, device) {
        0 if guest_closed => "dom0 did not close it".to_owned(),
        0 => "the guest did not close it".to_owned(),
        requests => format!("not closed, with {requests} of its requests in flight in dom0,"),
    };
    format!("{who} within {} s", timeout.as_secs())
}

/// The requests that dom0 has taken from a device's frontend and not answered; 0 if dom0 does not know.
fn in_flight(dir: &Dir, device: &Device) -> u64 {
    let served = control::devices(dir, device.front.0);
    let stats = served.find(&device.kind, device.id).and_then(|known| known.stats.as_ref());
    stats.and_then(|stats| stats["in_flight"].as_u64()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::attached;
    use crate::machine::device::NewDevice;
    use xenstore::DomId;
    use xenstore::server::{Config, Store};

    #[test]
    fn error_of_a_guest_that_is_printed_is_short_and_has_no_escape_sequences() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        let device = Device::new("vif", DomId(3), 0);
        let path = format!("{}/error", error_directory(&device.front_path()));
        let mut shown = |text: &str| {
            client.write(&path, text).unwrap();
            driver_error(&mut client, &device).unwrap().unwrap()
        };
        assert_eq!(shown("2 params: \"a\u{e9}\": missing"), "params: \"a\u{e9}\": missing");
        assert_eq!(shown("2 \x1b[2Ja\nb\u{9b}c"), "\\u{1b}[2Ja\\nb\\u{9b}c");
        assert_eq!(shown(&format!("2 {}", "x".repeat(2000))), format!("{}...", "x".repeat(256)));
    }

    #[test]
    fn attach_that_a_detach_or_another_attach_has_beaten_says_so() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        client.mkdir("/local/domain/3").unwrap();
        let device = Device::new("vif", DomId(3), 0);
        let add = |client: &mut Client| attached::add(client, &NewDevice::new(device.clone())).unwrap();
        let write = |path: String, text: &str| store.client().unwrap().write(&path, text).unwrap();
        let beaten = "vif 0: another command has detached it";
        let first = add(&mut client);
        assert!(!is_connected(&mut client, &first).unwrap());
        first.request_close(&mut client).unwrap();
        // As a frontend reports that.
        write(format!("{}/error", error_directory(&device.front_path())), "22 the backend is Closing");
        assert_eq!(is_connected(&mut client, &first).unwrap_err().to_string(), beaten);
        first.remove(&mut client).unwrap();
        let next = add(&mut client);
        for end in [device.front_path(), device.back_path()] {
            write(format!("{end}/{STATE}"), XenbusState::Connected.as_text());
        }
        assert_eq!(is_connected(&mut client, &first).unwrap_err().to_string(), beaten);
        assert!(is_connected(&mut client, &next).unwrap());
        // The first one's detach, too, is done without it.
        assert_eq!(close(&mut client, &first, Duration::ZERO).unwrap(), Closed::Yes);
        assert!(is_connected(&mut client, &next).unwrap());
    }

    #[test]
    fn device_is_closed_once_both_ends_are_and_not_while_it_is_in_use() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        let device = Device::new("vif", DomId(3), 0);
        client.mkdir("/local/domain/3").unwrap();
        let attached = attached::add(&mut client, &NewDevice::new(device.clone())).unwrap();
        let write = |end: String, state: XenbusState| {
            store.client().unwrap().write(&format!("{end}/{STATE}"), state.as_text()).unwrap();
        };
        write(device.back_path(), XenbusState::Closed);
        write(device.front_path(), XenbusState::Closing);
        assert!(!states(&mut client, &device).unwrap().are_closed());
        write(device.front_path(), XenbusState::Closed);
        assert!(states(&mut client, &device).unwrap().are_closed());
        // A backend that has closed already may still hold what it used.
        let closing = States { front: Some(XenbusState::Closed), back: Some(XenbusState::Closing) };
        assert_eq!(close(&mut client, &attached, Duration::ZERO).unwrap(), Closed::TimedOut(closing));
        write(device.front_path(), XenbusState::Connected);
        let error = format!("{}/error", error_directory(&device.front_path()));
        for (text, in_use) in [("16 in use", true), ("160 other", false)] {
            client.write(&error, text).unwrap();
            assert_eq!(is_in_use(&mut client, &device).unwrap(), in_use);
        }
    }
}
