//! An interface's tap: opens the interface, makes a tap with its address and mtu, joins the two by a small bridge.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bridge::Bridge;
use bridge::port::{netdev, tap::Tap};
use hypervisor::Hypervisor;
use netfront::{Config, Nic};
use ring_abi::netif::{MTU_DEFAULT, Mac};
use xenstore::{Client, Nodes};

use super::netns;
use super::nic_port::NicPort;
use crate::error::{Error, Result};
use crate::machine::process;

/// Serves interface `devid` of this domain until it is told to stop, or `gone` says that it was removed.
///
/// # Errors
/// The interface cannot be opened, or the tap not be made.
pub fn run(
    hv: &Arc<dyn Hypervisor>,
    name: &str,
    devid: u32,
    netns: Option<&File>,
    offload: Config,
    stop: BorrowedFd<'_>,
) -> Result<()> {
    // Taps belong to the namespace of the thread that makes them.
    netns.map_or(Ok(()), netns::enter)?;
    let mut store = Client::new(hv.store()?);
    // The tap comes first: it may not be allowed, and who sees the interface connected may use the tap at once.
    let tap = open_tap(&mut store, name, &format!("/local/domain/{}/device/vif/{devid}", hv.domid()))?;
    let nic = Nic::open(hv.clone(), store, devid, offload).map_err(failed)?;
    let bridge =
        Bridge::start(bridge::Config { name: name.into(), ..bridge::Config::default() }).map_err(failed)?;
    let tap_name = tap.name().to_owned();
    bridge.attach("tap", Box::new(tap)).map_err(failed)?;
    let port = NicPort::new(nic, offload).map_err(|e| Error::io("making buffers", e))?;
    bridge.attach("vif", Box::new(port)).map_err(failed)?;
    tracing::info!(vif = devid, tap = tap_name, "joined");
    process::wait_any(&[stop])?;
    tracing::info!(vif = devid, tap = tap_name, "closing");
    Ok(())
}

/// A tap with the address and mtu of the frontend at `path`, up.
fn open_tap(store: &mut Client, name: &str, path: &str) -> Result<Tap> {
    let mac = store.read_as::<Mac>(&format!("{path}/mac"))?;
    let mtu = store.read_opt_as::<u32>(&format!("{path}/mtu"))?;
    let mut tap = Tap::open(name).map_err(failed)?;
    netdev::set_mac(tap.name(), mac.0).map_err(failed)?;
    tap.set_mtu(mtu.unwrap_or(MTU_DEFAULT)).map_err(failed)?;
    netdev::set_up(tap.name()).map_err(failed)?;
    Ok(tap)
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Other(error.to_string())
}
