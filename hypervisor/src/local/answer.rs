//! The result of a client's request: a reply, descriptors, and what else the broker is to do.

use super::wire::{Failure, Reply};
use ring_abi::DomId;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Counts an open connection to the store among those of its domain, until it is dropped.
#[derive(Debug)]
pub struct StoreLease(#[allow(dead_code)] pub(super) Arc<()>);

/// A consequence of a request besides its reply.
#[derive(Debug)]
pub(super) enum Effect {
    /// The store has a new client.
    Store(DomId, UnixStream, StoreLease),
    /// The domain's process has exited, or was removed.
    Exited(DomId),
    /// This session is to be closed.
    Disconnect(u64),
    /// The domain has got or lost its member: pending [`Await`](super::wire::Request::Await)s may be over.
    Changed(DomId),
    /// The reply is due once the domain has a member (or has none).
    Await(DomId, bool),
}

/// The result of a request.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) reply: Option<Reply>,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) effects: Vec<Effect>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply: Some(reply), ..Self::default() }
    }
}

/// An answer, or why the request is refused.
pub(super) type Outcome = Result<Answer, (Failure, String)>;

/// Refuses a request.
pub(super) fn fail<T>(why: Failure, text: impl Into<String>) -> Result<T, (Failure, String)> {
    Err((why, text.into()))
}
