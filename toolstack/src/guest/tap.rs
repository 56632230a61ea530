//! Joins a vif to a tap: opens the vif, creates a tap with its MAC address and MTU, and attaches both to a wire.
//!
//! The tap is always created: an interface that exists, even an unused tap, belongs to another program. Machines on one
//! host share its network namespace and number their domains independently: the name `vifDOMID.DEVID` may be taken by
//! another machine's tap, in which case the tap gets [`TapOwner::other_name`]. Dom0's taps on real Xen never do
//! (`backend/bridges.rs`), as domids are unique on that host and its scripts expect `vifDOMID.DEVID`.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bridge::Bridge;
use bridge::port::netdev::{self, NetError};
use bridge::port::tap::Tap;
use hypervisor::Hypervisor;
use netfront::{Config, Nic};
use ring_abi::netif::key::{MAC, MTU};
use ring_abi::netif::{MTU_DEFAULT, Mac};
use xenstore::{Client, Nodes};

use super::netns;
use super::nic_port::NicPort;
use crate::error::{Error, Result, chain};
use crate::machine::process;
use crate::tap_owner::{TapOwner, holder};

/// How a tap is created.
#[derive(Clone, Debug)]
pub struct NewTap {
    /// The tap's name.
    pub name: String,
    /// Whether the user chose the name by the key vifname, so that no other name may be used.
    pub is_chosen: bool,
    /// The name to use if the first one is taken; if `None`, that is an error.
    pub other_name: Option<String>,
    /// The vif that the tap is created for.
    pub owner: TapOwner,
    /// Whether the name is written to the store, for `xpv network-list`.
    pub is_published: bool,
}

/// The key of a local guest's frontend with the name of the vif's tap.
pub const TAP: &str = "tap";

/// Serves vif `devid` of this domain through a new tap until `stop` becomes readable.
///
/// # Errors
/// [`Error::Other`] if the vif cannot be opened or the tap not be created.
pub fn run(
    hv: &Arc<dyn Hypervisor>,
    new: &NewTap,
    devid: u32,
    netns: Option<&File>,
    offload: Config,
    stop: BorrowedFd<'_>,
) -> Result<()> {
    // A tap belongs to the network namespace of the thread that creates it.
    netns.map_or(Ok(()), netns::enter)?;
    let mut store = Client::connect(&hv)?;
    // The tap is created first: that may be denied, and the tap may be used as soon as the vif is connected.
    let tap = open_tap(&mut store, new, &format!("/local/domain/{}/device/vif/{devid}", hv.domid()))?;
    let nic = Nic::open(hv.clone(), hv.clone(), hv.clone(), devid, offload).map_err(failed)?;
    let tap_name = tap.name().to_owned();
    let bridge = Bridge::start(bridge::Config::wire(&tap_name)).map_err(failed)?;
    bridge.attach("tap", Box::new(tap)).map_err(failed)?;
    let port = NicPort::new(nic, offload).map_err(|e| Error::io("allocating buffers", e))?;
    bridge.attach("vif", Box::new(port)).map_err(failed)?;
    tracing::info!(tap = tap_name, "attached to a tap");
    process::wait_any(&[stop])?;
    tracing::info!(tap = tap_name, "closing");
    Ok(())
}

/// Creates a tap with the MAC address and MTU of the frontend at `path`, and sets it up.
fn open_tap(store: &mut Client, new: &NewTap, path: &str) -> Result<Tap> {
    let mac = store.read_as::<Mac>(&format!("{path}/{MAC}"))?;
    let mtu = store.read_opt_as::<u32>(&format!("{path}/{MTU}"))?;
    let mut tap = create(new)?;
    netdev::set_mac(tap.name(), mac.0).map_err(failed)?;
    tap.set_mtu(mtu.unwrap_or(MTU_DEFAULT)).map_err(failed)?;
    netdev::set_up(tap.name()).map_err(failed)?;
    if new.is_published {
        store.write(&format!("{path}/{TAP}"), tap.name())?;
    }
    Ok(tap)
}

/// Creates the tap with the first of its names that is free, and marks it as the vif's.
fn create(new: &NewTap) -> Result<Tap> {
    let tap = match (Tap::create(&new.name), &new.other_name) {
        (Err(NetError::Exists(taken)), Some(other)) => {
            let holder = holder(&taken);
            tracing::warn!(
                tap = other,
                "using another name, as network interface {taken:?} exists already and is {holder}"
            );
            Tap::create(other)
        }
        (created, _) => created,
    };
    let tap = tap.map_err(|error| match error {
        NetError::Exists(name) => is_taken(&name, new.is_chosen),
        error => failed(error),
    })?;
    if let Err(error) = new.owner.mark(tap.name()) {
        // Not an error: the mark is for other processes only, as this tap is removed when the process exits.
        tracing::warn!(tap = tap.name(), error = %chain(&error), "failed to set the tap's alias");
    }
    Ok(tap)
}

fn is_taken(name: &str, is_chosen: bool) -> Error {
    let holder = holder(name);
    let choose = if is_chosen { ", or choose another name by vifname=" } else { "" };
    Error::Other(format!(
        "network interface {name:?} exists already and is {holder}; remove it if it is not needed (`ip link delete \
         {name}`){choose}"
    ))
}

fn failed(error: impl std::error::Error) -> Error {
    Error::Other(chain(&error).to_string())
}
