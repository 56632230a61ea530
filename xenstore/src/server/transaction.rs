//! A transaction: a tree of its own, what it has looked at, and what it has changed.
//!
//! Beginning one clones the tree, which takes no time. At the end, if nothing it looked at has changed since, its
//! changes are made again on the store's tree, all or none. A transaction that only adds a node does not look at
//! the names beside it: two devices can be made in one directory at the same time.
//!
//! A tree that is kept keeps old nodes. A guest's transaction is therefore begun anew, and bound to fail with
//! EAGAIN, once the store has changed [`KEEP`] times since: what all guests' open transactions keep alive together
//! is no more than the nodes replaced by so many changes.

use std::collections::BTreeMap;

use ring_abi::xs_wire::XsError;

use super::access::Who;
use super::node_ops::{Change, Effect, View};
use super::path::Path;
use super::quota::{Allowance, Quota};
use super::tree::{Generation, Node, Tree};

/// Changes to the store that a guest's transaction outlives.
pub(super) const KEEP: u64 = 4096;

/// What of a node a request depends on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Looked {
    /// That it is there or not, its value and permissions.
    Itself,
    /// These and its children's names.
    Children,
}

pub(super) struct Transaction {
    base: Tree,
    /// The tree as this transaction has changed it.
    pub(super) tree: Tree,
    seen: BTreeMap<Path, Looked>,
    log: Vec<Change>,
    /// Bytes this holds, the trees aside (they share the store's nodes).
    pub(super) held: usize,
    /// The store's count of changes when this began.
    pub(super) began: u64,
    /// It can only be dropped, for this reason.
    failed: Option<XsError>,
}

impl Transaction {
    pub(super) fn new(tree: &Tree, now: u64) -> Transaction {
        let (seen, log) = (BTreeMap::new(), Vec::new());
        Transaction { base: tree.clone(), tree: tree.clone(), seen, log, held: 0, began: now, failed: None }
    }

    /// Lets go of the old tree. Requests still work, on the new one; the end says EAGAIN.
    pub(super) fn expire(&mut self, tree: &Tree, now: u64) {
        *self = Transaction { failed: Some(XsError::EAGAIN), ..Transaction::new(tree, now) };
    }

    /// Remembers that a request depends on this node. `others` are bytes held outside this transaction.
    ///
    /// # Errors
    /// ENOSPC and ENOMEM beyond a quota; the transaction then cannot commit.
    pub(super) fn look(
        &mut self,
        path: &Path,
        looked: Looked,
        others: usize,
        allowance: &mut Allowance,
    ) -> Result<(), XsError> {
        if let Some(before) = self.seen.get_mut(path) {
            *before = looked.max(*before);
            return Ok(());
        }
        self.grow(size_of::<(Path, Looked)>() + path.as_str().len(), others, allowance)?;
        self.seen.insert(path.clone(), looked);
        Ok(())
    }

    /// Remembers a change that is to be made, and what it depends on: the node, and for a new node the one it will
    /// hang under.
    ///
    /// # Errors
    /// As [`Transaction::look`].
    pub(super) fn record(
        &mut self,
        change: &Change,
        others: usize,
        allowance: &mut Allowance,
    ) -> Result<(), XsError> {
        let path = change.path();
        self.look(path, Looked::Itself, others, allowance)?;
        if self.base.get(path).is_none() {
            let above = path.parent();
            let there = above.upwards().find(|p| self.base.get(&Path::fixed(p)).is_some()).unwrap_or("/");
            self.look(&Path::fixed(there), Looked::Itself, others, allowance)?;
        }
        self.grow(change.len(), others, allowance)?;
        self.log.push(change.clone());
        Ok(())
    }

    /// Takes the last recorded change back: it was refused.
    pub(super) fn unrecord(&mut self) {
        if let Some(change) = self.log.pop() {
            self.held -= change.len();
        }
    }

    /// Makes the changes on `tree`, as `who`.
    ///
    /// # Errors
    /// EAGAIN when something looked at has changed, or a change is not possible any more (the next attempt will
    /// be told why), or when too much has changed since it began; ENOMEM when the transaction went beyond a quota.
    /// The tree is then as before.
    pub(super) fn commit(
        self,
        tree: &mut Tree,
        generation: &mut Generation,
        who: Who,
        allowance: &mut Allowance,
    ) -> Result<Vec<Effect>, XsError> {
        if let Some(why) = self.failed {
            return Err(why);
        }
        if !self.seen.iter().all(|(path, looked)| same(self.base.get(path), tree.get(path), *looked)) {
            return Err(XsError::EAGAIN);
        }
        let mut outcome = tree.clone();
        let mut effects = Vec::new();
        for change in &self.log {
            let mut view =
                View { tree: &mut outcome, generation: &mut *generation, who, allowance: &mut *allowance };
            effects.extend(view.apply(change).map_err(|_| XsError::EAGAIN)?);
        }
        *tree = outcome;
        Ok(effects)
    }

    fn grow(&mut self, by: usize, others: usize, allowance: &mut Allowance) -> Result<(), XsError> {
        let touched = self.seen.len() + self.log.len() + 1;
        let refused = if !allowance.allows(Quota::TransactionNodes, touched) {
            XsError::ENOSPC
        } else if !allowance.allows(Quota::Memory, others + self.held + by) {
            XsError::ENOMEM
        } else {
            self.held += by;
            return Ok(());
        };
        self.failed = Some(XsError::ENOMEM);
        Err(refused)
    }
}

fn same(base: Option<&Node>, now: Option<&Node>, looked: Looked) -> bool {
    match (base, now) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            let children = looked == Looked::Children && a.children_changed != b.children_changed;
            a.changed == b.changed && !children
        }
        _ => false,
    }
}
