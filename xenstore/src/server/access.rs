//! A request's credentials, and the access that a node's permissions give them.

use std::sync::Arc;

use crate::permission::{Access, Permission};
use ring_abi::DomId;

/// A node's permissions: never empty, the owner's entry first. Cheap to clone.
pub(super) type Perms = Arc<[Permission]>;

/// On whose behalf a request is made: a domain, and the domain whose rights it has too (SET_TARGET).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) domid: DomId,
    pub(super) target: Option<DomId>,
}

impl Credentials {
    pub(super) fn new(domid: DomId) -> Credentials {
        Credentials { domid, target: None }
    }

    /// Whether these are dom0's, which no permission and no quota limits.
    pub(super) fn privileged(self) -> bool {
        self.domid == DomId::DOM0
    }

    /// Whether these may read and write the node and set its permissions.
    pub(super) fn owns(self, perms: &Perms) -> bool {
        self.privileged() || self.is(perms[0].domid)
    }

    /// The access that permissions give: both to the owner, that of its entry to a listed domain, that of the owner's
    /// entry to all others.
    pub(super) fn access(self, perms: &Perms) -> Access {
        if self.owns(perms) {
            return Access::Both;
        }
        perms[1..].iter().find(|p| self.is(p.domid)).unwrap_or(&perms[0]).access
    }

    fn is(self, domid: DomId) -> bool {
        self.domid == domid || self.target == Some(domid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_matching_permission_entry_decides() {
        let perms: Perms = ["r1", "n2", "b3", "n3"].map(|p| p.parse().unwrap()).into();
        let access = |credentials: Credentials| credentials.access(&perms);
        assert_eq!(access(Credentials::new(DomId(0))), Access::Both);
        assert_eq!(access(Credentials::new(DomId(1))), Access::Both);
        assert_eq!(access(Credentials::new(DomId(2))), Access::None);
        assert_eq!(access(Credentials::new(DomId(3))), Access::Both);
        assert_eq!(access(Credentials::new(DomId(4))), Access::Read);
        assert_eq!(access(Credentials { domid: DomId(4), target: Some(DomId(1)) }), Access::Both);
    }
}
