//! `xpv bridge port`: interfaces of the host that become ports of a running bridge, and cease to be.

use super::asked::Asked;
use super::words::Words;
use crate::config::host_port::HostPort;
use crate::control::bridge_query::BridgeQuery;
use crate::error::{Error, Result};

const EXPECTED: &str = "add tap:NAME|packet:NAME[,KEY=VALUE...] br BRIDGE, or del PORT";

/// Adds a port, or removes one.
pub(super) fn run(asked: &Asked<'_>, words: &[String]) -> Result<()> {
    let mut words = Words::new(words, EXPECTED);
    match words.next() {
        Some("add") => {
            let text = words.need("PORT")?;
            let port: HostPort = text.parse().map_err(|error| Error::Other(format!("PORT: {error}")))?;
            let bridge = match words.next() {
                Some("br") => words.need("br")?.to_owned(),
                Some(word) => return Err(words.unknown(word)),
                None => return Err(words.missing("br")),
            };
            words.end()?;
            asked.change(BridgeQuery::Attach { bridge, port: port.to_string() }).map(drop)
        }
        Some("del" | "delete") => {
            let port = asked.port(words.need("PORT")?)?;
            words.end()?;
            asked.change(BridgeQuery::Detach { bridge: port.bridge, port: port.row.port }).map(drop)
        }
        Some(word) => Err(words.unknown(word)),
        None => Err(words.missing("add or del")),
    }
}
