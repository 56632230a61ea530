//! Changes of bridges and their ports.

use super::asked::{Asked, Port};
use crate::commands::network_set;
use crate::config::vif_setting::setting;
use crate::control::bridge_query::BridgeQuery;
use crate::error::{Origin, Result};
use crate::machine::listing::Listing;

/// Changes a bridge's settings.
pub(super) fn bridge(asked: &Asked<'_>, bridge: &str, settings: &[String]) -> Result<()> {
    let query = BridgeQuery::Set { bridge: bridge.to_owned(), port: None, settings: settings.to_vec() };
    asked.change(query).map(drop)
}

/// Changes a port's settings, each `KEY=VALUE`: those of a vif in the store, as they are its own.
pub(super) fn port(asked: &Asked<'_>, port: &Port, settings: Vec<String>) -> Result<()> {
    let (Some(domid), Some(devid)) = (port.row.domid, port.row.devid) else {
        let (bridge, port) = (port.bridge.clone(), Some(port.row.port.clone()));
        return asked.change(BridgeQuery::Set { bridge, port, settings }).map(drop);
    };
    let origin = Origin::argument(port.interface());
    let settings = settings.iter().map(|text| setting(&origin, text)).collect::<Result<Vec<_>>>()?;
    let mut listing = Listing::open(asked.dir, asked.xen)?;
    let domain = listing.find_guest(&domid.to_string())?;
    let device = listing.find_vif(&domain, &devid.to_string())?;
    network_set::write(&mut listing, &device, &settings)
}
