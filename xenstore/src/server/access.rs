//! Who asks, and what a node's permissions let them do.

use std::sync::Arc;

use crate::DomId;
use crate::permission::{Access, Permission};

/// A node's list: never empty, the owner first. Cheap to clone.
pub(super) type Perms = Arc<[Permission]>;

/// Whoever makes a request: a domain, and the one it acts for (SET_TARGET).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) domid: DomId,
    pub(super) target: Option<DomId>,
}

impl Who {
    pub(super) fn new(domid: DomId) -> Who {
        Who { domid, target: None }
    }

    /// dom0 and its tools: no permission and no quota holds them.
    pub(super) fn privileged(self) -> bool {
        self.domid == 0
    }

    /// May do all, and change the list.
    pub(super) fn owns(self, perms: &Perms) -> bool {
        self.privileged() || self.is(perms[0].domid)
    }

    /// What the list lets them do: an owner both, a listed domain what it says, all others what the owner's entry
    /// says.
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
    fn the_list_is_read_in_order() {
        let perms: Perms = ["r1", "n2", "b3", "n3"].map(|p| p.parse().unwrap()).into();
        let access = |who: Who| who.access(&perms);
        assert_eq!(access(Who::new(0)), Access::Both);
        assert_eq!(access(Who::new(1)), Access::Both);
        assert_eq!(access(Who::new(2)), Access::None);
        assert_eq!(access(Who::new(3)), Access::Both);
        assert_eq!(access(Who::new(4)), Access::Read);
        assert_eq!(access(Who { domid: 4, target: Some(1) }), Access::Both);
    }
}
