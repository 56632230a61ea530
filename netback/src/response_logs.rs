// Not a core: does I/O or calls a hypervisor.

//! The response logs of a vif's two rings, kept in the inflight directory for a process that resumes the connection.

use crate::handshake::{EventPorts, Negotiated};
use inflight::{InflightDir, InflightRegion, Result};
use ring_abi::netif::key;
use xenbus::Device;

/// Names of one vif's response logs in the inflight directory.
#[derive(Debug)]
pub(crate) struct ResponseLogs {
    inflight_dir: InflightDir,
    /// The transmit ring's and the receive ring's.
    names: [String; 2],
}

impl ResponseLogs {
    pub(crate) fn new(inflight_dir: InflightDir, device: &Device) -> Self {
        let name = |ring| format!("vif-{}-{}-{ring}", device.front, device.id);
        Self { inflight_dir, names: [name("tx"), name("rx")] }
    }

    /// Creates memory for the logs of a new connection.
    pub(crate) fn create(&self, negotiated: &Negotiated, bytes: [usize; 2]) -> Result<[InflightRegion; 2]> {
        let connection = connection_id(negotiated);
        let create = |ring: usize| self.inflight_dir.create(&self.names[ring], &connection, bytes[ring]);
        Ok([create(0)?, create(1)?])
    }

    /// Opens the logs that an earlier process kept of the same connection; `None` if there are none.
    pub(crate) fn open(
        &self,
        negotiated: &Negotiated,
        bytes: [usize; 2],
    ) -> Result<Option<[InflightRegion; 2]>> {
        let connection = connection_id(negotiated);
        let open = |ring: usize| self.inflight_dir.open(&self.names[ring], &connection, bytes[ring]);
        Ok(open(0)?.zip(open(1)?).map(|(tx, rx)| [tx, rx]))
    }

    /// Removes the logs of a connection that is closed.
    pub(crate) fn forget(&self) {
        self.names.iter().for_each(|name| self.inflight_dir.remove(name));
    }
}

/// The frontend's keys of a connection, by which it differs from every other.
fn connection_id(negotiated: &Negotiated) -> String {
    let events = match negotiated.events {
        EventPorts::Shared(port) => format!("{} {port}", key::EVENT_CHANNEL),
        EventPorts::Split { tx, rx } => {
            format!("{} {tx} {} {rx}", key::EVENT_CHANNEL_TX, key::EVENT_CHANNEL_RX)
        }
    };
    let tx_ring = negotiated.tx_ring.0;
    let rx_ring = negotiated.rx_ring.0;
    format!("{} {tx_ring} {} {rx_ring} {events}", key::TX_RING_REF, key::RX_RING_REF)
}
