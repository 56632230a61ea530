//! Why an operation on event channels fails.

use alloc::boxed::Box;
use ring_abi::{DomId, EventPort};

/// The result of an operation on event channels.
pub type Result<T> = core::result::Result<T, Error>;

/// Why an operation on event channels failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The domain has no more ports.
    #[error("no space left: {0}")]
    NoSpace(&'static str),
    /// The peer domain does not exist, or has exited.
    #[error("domain {0} does not exist")]
    NoSuchDomain(DomId),
    /// The peer has no unbound port of this number for this domain.
    #[error("domain {peer} has no unbound event channel {port} for this domain")]
    NoSuchPort {
        /// The peer.
        peer: DomId,
        /// The requested port.
        port: EventPort,
    },
    /// The other end is closed.
    #[error("the other end is closed")]
    Closed,
    /// The hypervisor's own reason, such as a failed system call.
    #[error(transparent)]
    Hypervisor(Box<dyn core::error::Error + Send + Sync>),
}
