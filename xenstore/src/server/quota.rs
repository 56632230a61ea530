//! Quotas: how much of the store one guest may use. dom0 is not limited.

use std::collections::BTreeSet;

use ring_abi::DomId;

/// A limited resource. The names are those of GET_QUOTA and SET_QUOTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quota {
    /// Nodes owned.
    Nodes,
    /// Watches set, on all connections of the domain.
    Watches,
    /// Transactions open at the same time, on all connections of the domain.
    Transactions,
    /// Bytes in a node: its header, permissions, value, and its children's names.
    NodeSize,
    /// Entries in a node's permissions.
    Permissions,
    /// Unsent replies of a connection; beyond the quota no further request is read.
    Outstanding,
    /// Bytes in a path, `/local/domain/<domid>/` not counted.
    PathLength,
    /// Nodes touched, and changes made, in one transaction; each sixteen names of a path count as one more.
    TransactionNodes,
    /// Bytes held for a domain in watches and open transactions, with the nodes that these have of their own.
    Memory,
    /// Unsent watch events of a domain; beyond the quota its connection with most of them is closed.
    Events,
}

impl Quota {
    /// Every quota.
    pub const ALL: [Quota; 10] = [
        Quota::Nodes,
        Quota::Watches,
        Quota::Transactions,
        Quota::NodeSize,
        Quota::Permissions,
        Quota::Outstanding,
        Quota::PathLength,
        Quota::TransactionNodes,
        Quota::Memory,
        Quota::Events,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Quota::Nodes => "nodes",
            Quota::Watches => "watches",
            Quota::Transactions => "transactions",
            Quota::NodeSize => "node-size",
            Quota::Permissions => "permissions",
            Quota::Outstanding => "outstanding",
            Quota::PathLength => "path-length",
            Quota::TransactionNodes => "transaction-nodes",
            Quota::Memory => "memory",
            Quota::Events => "watch-events",
        }
    }

    /// The quota with a name on the wire. xenstored calls `permissions` also `node-permissions`.
    pub fn from_name(name: &str) -> Option<Quota> {
        let name = if name == "node-permissions" { "permissions" } else { name };
        Quota::ALL.into_iter().find(|q| q.name() == name)
    }
}

/// A value for every quota; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas([u32; Quota::ALL.len()]);

impl Quotas {
    /// The value of a quota.
    pub fn get(&self, quota: Quota) -> u32 {
        self.0[quota as usize]
    }

    /// Sets the value of a quota.
    pub fn set(&mut self, quota: Quota, value: u32) {
        self.0[quota as usize] = value;
    }

    /// Whether `used` is more than a quota allows.
    pub(super) fn exceeded(&self, quota: Quota, used: usize) -> bool {
        let most = self.get(quota);
        most != 0 && used > most as usize
    }
}

impl Default for Quotas {
    /// xenstored's defaults; xenstored has no `watch-events`.
    fn default() -> Quotas {
        let mut quotas = Quotas([0; Quota::ALL.len()]);
        for (quota, value) in [
            (Quota::Nodes, 1000),
            (Quota::Watches, 128),
            (Quota::Transactions, 10),
            (Quota::NodeSize, 2048),
            (Quota::Permissions, 5),
            (Quota::Outstanding, 20),
            (Quota::PathLength, ring_abi::xs_wire::REL_PATH_MAX as u32),
            (Quota::TransactionNodes, 1024),
            (Quota::Memory, 2 * 1024 * 1024 + 512 * 1024),
            (Quota::Events, 1024),
        ] {
            quotas.set(quota, value);
        }
        quotas
    }
}

/// One domain's quotas, and those that have been logged as exceeded.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    domid: DomId,
    pub(super) quotas: Quotas,
    reported: BTreeSet<Quota>,
}

impl Allowance {
    pub(super) fn new(domid: DomId, quotas: Quotas) -> Allowance {
        Allowance { domid, quotas, reported: BTreeSet::new() }
    }

    /// Whether `used` is within the quota. Only the first excess is logged, so that a guest that keeps trying cannot
    /// fill the log.
    pub(super) fn allows(&mut self, quota: Quota, used: usize) -> bool {
        if self.domid == DomId::DOM0 || !self.quotas.exceeded(quota, used) {
            return true;
        }
        if self.reported.insert(quota) {
            let most = self.quotas.get(quota);
            let name = quota.name();
            tracing::warn!(domid = self.domid.0, quota = name, most, used, "xenstore quota exceeded");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_names_round_trip() {
        for quota in Quota::ALL {
            assert_eq!(Quota::from_name(quota.name()), Some(quota));
        }
        assert_eq!(Quota::from_name("node-permissions"), Some(Quota::Permissions));
        assert_eq!(Quota::from_name("soft-memory"), None);
    }

    #[test]
    fn dom0_and_a_quota_of_zero_are_not_limited() {
        let mut quotas = Quotas::default();
        assert!(!Allowance::new(DomId(1), quotas).allows(Quota::Watches, 129));
        assert!(Allowance::new(DomId(1), quotas).allows(Quota::Watches, 128));
        assert!(Allowance::new(DomId::DOM0, quotas).allows(Quota::Watches, 129));
        quotas.set(Quota::Watches, 0);
        assert!(Allowance::new(DomId(1), quotas).allows(Quota::Watches, 129));
    }
}
