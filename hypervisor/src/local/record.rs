//! What the broker knows of one domain, and of the client that has joined as it.

use super::events::EventPipes;
use super::layout::Layout;
use super::token::Token;
use super::wire::{DomainInfo, Failure};
use ring_abi::{DomId, EventPort};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Ports that a guest may have.
pub(super) const GUEST_PORTS: usize = 256;
/// Ports that domain 0 may have.
const DOM0_PORTS: usize = 1 << 16;

/// The process at the other end of a connection, as authenticated by the kernel (SO_PEERCRED).
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) session: u64,
    pub(super) uid: u32,
    pub(super) pid: u32,
    pub(super) role: Role,
}

/// The role of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Not authenticated: it has neither joined nor become a controller.
    New,
    /// It has joined as this domain.
    Member(DomId),
    /// It may create, destroy and list domains.
    Controller,
}

/// An arena that a domain offers to a peer.
pub(super) struct Offered {
    pub(super) fd: OwnedFd,
    pub(super) layout: Layout,
}

/// The state of a port.
pub(super) enum PortState {
    /// No peer has bound to it: the broker has the peer's end.
    Unbound { peer: DomId, other: EventPipes },
    /// Both ends are with their domains, or the other end is gone.
    Interdomain,
}

/// A member of a broker that is gone, as that has kept it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptMember {
    /// Its process.
    pub pid: u32,
    /// Its secret.
    pub token: Token,
}

/// The broker's record of a domain.
pub(super) struct Record {
    pub(super) name: String,
    pub(super) uids: Vec<u32>,
    pub(super) member: Option<Client>,
    /// The member's secret, where the broker keeps its state for a successor.
    pub(super) token: Option<Token>,
    /// The predecessor's member, which may take its membership up again.
    pub(super) awaited: Option<KeptMember>,
    /// Whether the predecessor's member has taken its membership up again: then this broker has all its arenas.
    pub(super) has_resumed: bool,
    pub(super) ports: BTreeMap<u32, PortState>,
    last_port: u32,
    /// Shared with the leases of its open connections to the store.
    pub(super) stores: Arc<()>,
    /// Its arenas, by peer.
    pub(super) arenas: BTreeMap<DomId, Offered>,
    /// The pipe that says when an arena offered to it was retired, once it has requested one.
    pub(super) retirements: Option<OwnedFd>,
}

impl Record {
    pub(super) fn new(name: String, uids: Vec<u32>) -> Self {
        Self {
            name,
            uids,
            member: None,
            token: None,
            awaited: None,
            has_resumed: false,
            ports: BTreeMap::new(),
            last_port: 0,
            stores: Arc::default(),
            arenas: BTreeMap::new(),
            retirements: None,
        }
    }

    /// Allocates a port.
    ///
    /// # Errors
    /// [`Failure::NoSpace`] where the domain has too many.
    pub(super) fn open_port(
        &mut self,
        domid: DomId,
        state: PortState,
    ) -> Result<EventPort, (Failure, String)> {
        self.check_ports(domid)?;
        loop {
            self.last_port = self.last_port.wrapping_add(1).max(1);
            if !self.ports.contains_key(&self.last_port) {
                self.ports.insert(self.last_port, state);
                return Ok(EventPort(self.last_port));
            }
        }
    }

    /// Enters a port that the domain had at the predecessor. Later ports get greater numbers.
    ///
    /// # Errors
    /// [`Failure::NoSpace`] where the domain has too many.
    pub(super) fn restore_port(&mut self, domid: DomId, port: EventPort) -> Result<(), (Failure, String)> {
        self.check_ports(domid)?;
        self.ports.insert(port.0, PortState::Interdomain);
        self.last_port = self.last_port.max(port.0);
        Ok(())
    }

    fn check_ports(&self, domid: DomId) -> Result<(), (Failure, String)> {
        let bound = if domid == DomId::DOM0 { DOM0_PORTS } else { GUEST_PORTS };
        if self.ports.len() >= bound {
            return Err((Failure::NoSpace, "too many event channels".into()));
        }
        Ok(())
    }

    pub(super) fn info(&self, domid: DomId) -> DomainInfo {
        let uid = self.uids.first().copied().unwrap_or(0);
        DomainInfo { domid, name: self.name.clone(), uid, pid: self.member.map(|client| client.pid) }
    }

    /// Its member, for a successor; `None` where it has none that could come back.
    pub(super) fn kept_member(&self) -> Option<KeptMember> {
        let joined = self.member.and_then(|client| Some(KeptMember { pid: client.pid, token: self.token? }));
        joined.or(self.awaited)
    }
}
