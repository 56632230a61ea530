// Not a core: does I/O or calls a hypervisor.

//! The interface's connection to its backend: made and dropped as the handshake says, and what becomes of errors.

use super::{ANY, Nic};
use crate::connection::{Connection, Manner};
use crate::error::{ConnectionError, Error};
use crate::handshake::{BACKEND_KEYS, CONNECTION_KEYS, Negotiated, Requested, frontend_keys};
use nix::errno::Errno;
use ring_abi::netif::{ETH_HLEN, MAX_TX_SIZE};
use xenbus::Keys;
use xenbus::frontend::{self, FrontDevice, Frontend};

impl FrontDevice for Nic {
    type Error = Error;

    const CONNECTION_KEYS: &[&str] = &CONNECTION_KEYS;
    const BACKEND_KEYS: &[&str] = &BACKEND_KEYS;

    fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    fn offer(&mut self, back: &Keys) -> Result<Keys, Error> {
        self.disconnected();
        let negotiated = Negotiated::from_keys(back)?;
        let peer = self.frontend.end().other_id();
        let gso = self.requested.csum && self.requested.gso && (negotiated.gso_v4 || negotiated.gso_v6);
        let longest = if gso { MAX_TX_SIZE } else { self.identity.mtu as usize + ETH_HLEN };
        let possible = self.grants.clone().page_acceptor().is_some();
        let flip = self.rx.flips(back, possible, longest)?;
        let manner = Manner { split: negotiated.split && self.split_event_channels, flip };
        let unused = &mut self.unused;
        let connection = Connection::new(&self.grants, &*self.channels, peer, manner, &self.stats, unused)?;
        connection.register(self.frontend.event_set(), ANY)?;
        self.max_len = if negotiated.sg { MAX_TX_SIZE } else { ring_abi::PAGE_SIZE };
        let keys = frontend_keys(connection.info(), Requested { flip, ..self.requested });
        self.connection = Some(connection);
        self.negotiated = Some(negotiated);
        Ok(keys)
    }

    fn connected(&mut self, _: &Keys) -> Result<(), Error> {
        tracing::info!("connected");
        Ok(())
    }

    fn disconnected(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.unregister(self.frontend.event_set());
            connection.give_back(&mut self.unused);
            tracing::info!("disconnected");
        }
    }

    fn removed(&mut self) -> Result<(), Error> {
        Err(Error::Removed(self.frontend.end().path().to_owned()))
    }
}

impl Nic {
    /// Closes the interface for good if its backend published an invalid key. Other errors are returned, and the handshake
    /// stays where it is: the interface was removed, the store refused a request, or a limit of the hypervisor's or the
    /// system's is reached.
    pub(super) fn survive(&mut self, outcome: Result<(), Error>) -> Result<(), Error> {
        match outcome {
            Err(error @ Error::Key(_)) => {
                self.store_due = true;
                frontend::fail(self, Errno::EINVAL as i32, &error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Closes after an error of the connection: for good only if the backend broke the protocol.
    pub(super) fn connection_failed(&mut self, error: &ConnectionError) {
        self.store_due = true;
        match error {
            ConnectionError::Grant(_) | ConnectionError::Channel(_) => {
                self.frontend.span().in_scope(|| tracing::warn!(%error, "closing the connection"));
                frontend::reconnect(self);
            }
            _ => frontend::fail(self, Errno::EPROTO as i32, error),
        }
    }
}
