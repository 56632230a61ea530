//! Bridges a vif to a tap: opens the vif, creates a tap with its MAC address and MTU, and attaches both to a bridge.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bridge::Bridge;
use bridge::port::{netdev, tap::Tap};
use hypervisor::Hypervisor;
use netfront::{Config, Nic};
use ring_abi::netif::key::{MAC, MTU};
use ring_abi::netif::{MTU_DEFAULT, Mac};
use xenstore::{Client, Nodes};

use super::netns;
use super::nic_port::NicPort;
use crate::error::{Error, Result, chain};
use crate::machine::process;

/// Serves vif `devid` of this domain through the tap `name` until `stop` becomes readable.
///
/// # Errors
/// [`Error::Other`] if the vif cannot be opened or the tap not be created.
pub fn run(
    hv: &Arc<dyn Hypervisor>,
    name: &str,
    devid: u32,
    netns: Option<&File>,
    offload: Config,
    stop: BorrowedFd<'_>,
) -> Result<()> {
    // A tap belongs to the network namespace of the thread that creates it.
    netns.map_or(Ok(()), netns::enter)?;
    let mut store = Client::new(hv.store()?);
    // The tap is created first: that may be denied, and the tap may be used as soon as the vif is connected.
    let tap = open_tap(&mut store, name, &format!("/local/domain/{}/device/vif/{devid}", hv.domid()))?;
    let nic = Nic::open(hv.clone(), store, devid, offload).map_err(failed)?;
    let bridge =
        Bridge::start(bridge::Config { name: name.into(), ..bridge::Config::default() }).map_err(failed)?;
    let tap_name = tap.name().to_owned();
    bridge.attach("tap", Box::new(tap)).map_err(failed)?;
    let port = NicPort::new(nic, offload).map_err(|e| Error::io("allocating buffers", e))?;
    bridge.attach("vif", Box::new(port)).map_err(failed)?;
    tracing::info!(tap = tap_name, "attached to a tap");
    process::wait_any(&[stop])?;
    tracing::info!(tap = tap_name, "closing");
    Ok(())
}

/// Creates a tap with the MAC address and MTU of the frontend at `path`, and sets it up.
fn open_tap(store: &mut Client, name: &str, path: &str) -> Result<Tap> {
    let mac = store.read_as::<Mac>(&format!("{path}/{MAC}"))?;
    let mtu = store.read_opt_as::<u32>(&format!("{path}/{MTU}"))?;
    let mut tap = Tap::open(name).map_err(failed)?;
    netdev::set_mac(tap.name(), mac.0).map_err(failed)?;
    tap.set_mtu(mtu.unwrap_or(MTU_DEFAULT)).map_err(failed)?;
    netdev::set_up(tap.name()).map_err(failed)?;
    Ok(tap)
}

fn failed(error: impl std::error::Error) -> Error {
    Error::Other(chain(&error).to_string())
}
