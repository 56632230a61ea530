//! Why an operation on grants fails.

use alloc::boxed::Box;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef};

/// The result of an operation on grants.
pub type Result<T> = core::result::Result<T, Error>;

/// Why an operation on grants failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A grant was refused.
    #[error("grant {gref} of domain {peer}: {status}")]
    Grant {
        /// The granting domain.
        peer: DomId,
        /// The reference.
        gref: GrantRef,
        /// Why; never [`Status::OKAY`].
        status: Status,
    },
    /// The domain has no more pages or references.
    #[error("no space left: {0}")]
    NoSpace(&'static str),
    /// The peer domain does not exist, or has exited.
    #[error("domain {0} does not exist")]
    NoSuchDomain(DomId),
    /// The hypervisor's own reason, such as a failed system call.
    #[error(transparent)]
    Hypervisor(Box<dyn core::error::Error + Send + Sync>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn grant_error_names_reference_domain_and_status() {
        let error = Error::Grant { peer: DomId(3), gref: GrantRef(9), status: Status::BAD_GNTREF };
        assert_eq!(error.to_string(), "grant 9 of domain 3: invalid grant reference (-3)");
    }
}
