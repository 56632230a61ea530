//! What is kept of a vif's rings for a process that takes over: a response log of each, under the connection's own
//! keys.

use crate::handshake::{Agreed, Events};
use hypervisor::{InflightDir, InflightRegion, Result};
use xenstore::xenbus::Device;

/// Where the response logs of one vif are.
#[derive(Debug)]
pub(crate) struct ResponseLogs {
    keep: InflightDir,
    names: [String; 2],
}

impl ResponseLogs {
    pub(crate) fn new(keep: InflightDir, device: &Device) -> Self {
        let name = |ring| format!("vif-{}-{}-{ring}", device.front, device.id);
        Self { keep, names: [name("tx"), name("rx")] }
    }

    /// Memory for those of a new connection: the transmit ring's and the receive ring's.
    pub(crate) fn fresh(&self, agreed: &Agreed, bytes: [usize; 2]) -> Result<[InflightRegion; 2]> {
        let belongs_to = connection(agreed);
        let create = |ring: usize| self.keep.create(&self.names[ring], &belongs_to, bytes[ring]);
        Ok([create(0)?, create(1)?])
    }

    /// Those that an earlier process has left of the same connection.
    pub(crate) fn left(&self, agreed: &Agreed, bytes: [usize; 2]) -> Result<Option<[InflightRegion; 2]>> {
        let belongs_to = connection(agreed);
        let open = |ring: usize| self.keep.open(&self.names[ring], &belongs_to, bytes[ring]);
        Ok(open(0)?.zip(open(1)?).map(|(tx, rx)| [tx, rx]))
    }

    /// The connection is over.
    pub(crate) fn forget(&self) {
        self.names.iter().for_each(|name| self.keep.remove(name));
    }
}

/// The keys by which the frontend named this connection: another one has others.
fn connection(agreed: &Agreed) -> String {
    let events = match agreed.events {
        Events::Both(port) => format!("event-channel {port}"),
        Events::Split { tx, rx } => format!("event-channel-tx {tx} event-channel-rx {rx}"),
    };
    format!("tx-ring-ref {} rx-ring-ref {} {events}", agreed.tx.0, agreed.rx.0)
}
