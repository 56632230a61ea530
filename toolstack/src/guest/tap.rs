//! An interface's tap: opens the interface, makes a tap with its address and mtu, joins the two by a small bridge.
//!
//! The tap is always a new one: an interface that exists, be it a tap that nobody uses, is somebody else's.
//! Machines on one host share its network namespace and number their domains independently, so that the name
//! `vifDOMID.DEVID` may be another machine's; then the tap gets [`TapOwner::other_name`]. On real Xen, whose
//! domids are unique on the host and whose scripts expect `vifDOMID.DEVID`, dom0's taps never do
//! (`backend/bridges.rs`).

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bridge::Bridge;
use bridge::port::netdev::{self, NetError};
use bridge::port::tap::Tap;
use hypervisor::Hypervisor;
use netfront::{Config, Nic};
use ring_abi::netif::{MTU_DEFAULT, Mac};
use xenstore::{Client, Nodes};

use super::netns;
use super::nic_port::NicPort;
use crate::error::{Error, Result};
use crate::machine::process;
use crate::tap_owner::{TapOwner, holder};

/// What a tap is to be.
#[derive(Clone, Debug)]
pub struct NewTap {
    /// Its name.
    pub name: String,
    /// The name was chosen by the key vifname, so that it is this one or none.
    pub is_chosen: bool,
    /// Its name where the first one is taken; `None` refuses then.
    pub other_name: Option<String>,
    /// The vif that it is made for.
    pub owner: TapOwner,
    /// Whether its name is told in the store, for `xpv network-list`.
    pub is_told: bool,
}

/// The key of a local guest's frontend that says what the vif's tap is called.
pub const TAP: &str = "tap";

/// Serves interface `devid` of this domain until it is told to stop, or `gone` says that it was removed.
///
/// # Errors
/// The interface cannot be opened, or the tap not be made.
pub fn run(
    hv: &Arc<dyn Hypervisor>,
    new: &NewTap,
    devid: u32,
    netns: Option<&File>,
    offload: Config,
    stop: BorrowedFd<'_>,
) -> Result<()> {
    // Taps belong to the namespace of the thread that makes them.
    netns.map_or(Ok(()), netns::enter)?;
    let mut store = Client::new(hv.store()?);
    // The tap comes first: it may not be allowed, and who sees the interface connected may use the tap at once.
    let tap = open_tap(&mut store, new, &format!("/local/domain/{}/device/vif/{devid}", hv.domid()))?;
    let nic = Nic::open(hv.clone(), store, devid, offload).map_err(failed)?;
    let tap_name = tap.name().to_owned();
    let config = bridge::Config { name: tap_name.clone(), ..bridge::Config::default() };
    let bridge = Bridge::start(config).map_err(failed)?;
    bridge.attach("tap", Box::new(tap)).map_err(failed)?;
    let port = NicPort::new(nic, offload).map_err(|e| Error::io("making buffers", e))?;
    bridge.attach("vif", Box::new(port)).map_err(failed)?;
    tracing::info!(vif = devid, tap = tap_name, "joined");
    process::wait_any(&[stop])?;
    tracing::info!(vif = devid, tap = tap_name, "closing");
    Ok(())
}

/// A tap with the address and mtu of the frontend at `path`, up.
fn open_tap(store: &mut Client, new: &NewTap, path: &str) -> Result<Tap> {
    let mac = store.read_as::<Mac>(&format!("{path}/mac"))?;
    let mtu = store.read_opt_as::<u32>(&format!("{path}/mtu"))?;
    let mut tap = create(new)?;
    netdev::set_mac(tap.name(), mac.0).map_err(failed)?;
    tap.set_mtu(mtu.unwrap_or(MTU_DEFAULT)).map_err(failed)?;
    netdev::set_up(tap.name()).map_err(failed)?;
    if new.is_told {
        store.write(&format!("{path}/{TAP}"), tap.name())?;
    }
    Ok(tap)
}

/// Makes the tap by the first of its names that is free, and marks it as the vif's.
fn create(new: &NewTap) -> Result<Tap> {
    let tap = match (Tap::create(&new.name), &new.other_name) {
        (Err(NetError::Exists(taken)), Some(other)) => {
            let holder = holder(&taken);
            tracing::warn!(
                tap = other,
                "named so, as network interface {taken:?} exists already and is {holder}"
            );
            Tap::create(other)
        }
        (made, _) => made,
    };
    let tap = tap.map_err(|error| match error {
        NetError::Exists(name) => is_taken(&name, new.is_chosen),
        error => failed(error),
    })?;
    if let Err(error) = new.owner.mark(tap.name()) {
        // It goes with this process: the mark only tells others whose it is.
        tracing::warn!(tap = tap.name(), %error, "has no alias that says whose it is");
    }
    Ok(tap)
}

fn is_taken(name: &str, is_chosen: bool) -> Error {
    let holder = holder(name);
    let choose = if is_chosen { ", or choose another name by vifname=" } else { "" };
    Error::Other(format!(
        "network interface {name:?} exists already and is {holder}; remove it if nobody needs it (`ip link delete \
         {name}`){choose}"
    ))
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Other(error.to_string())
}
