//! A transaction: a tree of its own, the nodes it depends on, and the changes it has made.
//!
//! Starting a transaction clones the tree, which takes constant time. The commit makes its changes again on the store's
//! tree, all or none, unless a node it depends on has changed meanwhile. A transaction that only adds a node does not
//! depend on the names beside it: two devices can be created in one directory at the same time.
//!
//! A cloned tree keeps old nodes in memory. A guest's transaction is therefore restarted, and its commit fails with
//! EAGAIN, once the store has changed [`MAX_AGE`] times since its start: the open transactions of all guests together
//! keep no more than the nodes that so many changes replaced.

use std::collections::BTreeMap;

use ring_abi::xs_wire::XsError;

use super::access::Credentials;
use super::node_ops::{Change, Effect, TreeView};
use super::path::Path;
use super::quota::{Allowance, Quota};
use super::tree::{Generation, Node, Tree};

/// Most changes to the store during a guest's transaction that do not expire it.
pub(super) const MAX_AGE: u64 = 4096;

/// What a request depends on at a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dependency {
    /// Its existence, value and permissions.
    Node,
    /// These and its children's names.
    Children,
}

pub(super) struct Transaction {
    base: Tree,
    /// The tree as this transaction has changed it.
    pub(super) tree: Tree,
    dependencies: BTreeMap<Path, Dependency>,
    log: Vec<Change>,
    /// Bytes this holds, without the trees, which share the store's nodes.
    pub(super) held: usize,
    /// The store's count of changes at the start.
    pub(super) began: u64,
    /// The error of the commit, once it can only fail.
    failed: Option<XsError>,
}

impl Transaction {
    pub(super) fn new(tree: &Tree, now: u64) -> Transaction {
        Transaction {
            base: tree.clone(),
            tree: tree.clone(),
            dependencies: BTreeMap::new(),
            log: Vec::new(),
            held: 0,
            began: now,
            failed: None,
        }
    }

    /// Drops the old tree. Further requests are made on the new one; the commit fails with EAGAIN.
    pub(super) fn expire(&mut self, tree: &Tree, now: u64) {
        *self = Transaction { failed: Some(XsError::EAGAIN), ..Transaction::new(tree, now) };
    }

    /// Records that a request depends on a node. `others` are bytes held outside this transaction.
    ///
    /// # Errors
    /// ENOSPC and ENOMEM beyond a quota; the transaction then cannot commit.
    pub(super) fn depend_on(
        &mut self,
        path: &Path,
        dependency: Dependency,
        others: usize,
        allowance: &mut Allowance,
    ) -> Result<(), XsError> {
        if let Some(before) = self.dependencies.get_mut(path) {
            *before = dependency.max(*before);
            return Ok(());
        }
        self.grow(size_of::<(Path, Dependency)>() + path.as_str().len(), others, allowance)?;
        self.dependencies.insert(path.clone(), dependency);
        Ok(())
    }

    /// Records a change that is about to be made, and what it depends on: the node, and for a new node its nearest
    /// ancestor.
    ///
    /// # Errors
    /// ENOSPC and ENOMEM beyond a quota; the transaction then cannot commit.
    pub(super) fn record(
        &mut self,
        change: &Change,
        others: usize,
        allowance: &mut Allowance,
    ) -> Result<(), XsError> {
        let path = change.path();
        self.depend_on(path, Dependency::Node, others, allowance)?;
        if self.base.get(path).is_none() {
            let above = path.parent();
            let nearest = above.upwards().find(|p| self.base.get(&Path::fixed(p)).is_some()).unwrap_or("/");
            self.depend_on(&Path::fixed(nearest), Dependency::Node, others, allowance)?;
        }
        self.grow(change.len(), others, allowance)?;
        self.log.push(change.clone());
        Ok(())
    }

    /// Removes the last recorded change, which was refused.
    pub(super) fn unrecord(&mut self) {
        if let Some(change) = self.log.pop() {
            self.held -= change.len();
        }
    }

    /// Makes the changes on `tree` with these credentials.
    ///
    /// # Errors
    /// EAGAIN when a dependency has changed, when a change is not possible any more (the next attempt gets the reason),
    /// or when the transaction has expired; ENOMEM when it exceeded a quota. `tree` is then unchanged.
    pub(super) fn commit(
        self,
        tree: &mut Tree,
        generation: &mut Generation,
        credentials: Credentials,
        allowance: &mut Allowance,
    ) -> Result<Vec<Effect>, XsError> {
        if let Some(why) = self.failed {
            return Err(why);
        }
        if !self.dependencies.iter().all(|(path, d)| same(self.base.get(path), tree.get(path), *d)) {
            return Err(XsError::EAGAIN);
        }
        let mut outcome = tree.clone();
        let mut effects = Vec::new();
        for change in &self.log {
            let mut view = TreeView {
                tree: &mut outcome,
                generation: &mut *generation,
                credentials,
                allowance: &mut *allowance,
            };
            effects.extend(view.apply(change).map_err(|_| XsError::EAGAIN)?);
        }
        *tree = outcome;
        Ok(effects)
    }

    fn grow(&mut self, by: usize, others: usize, allowance: &mut Allowance) -> Result<(), XsError> {
        let touched = self.dependencies.len() + self.log.len() + 1;
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

fn same(base: Option<&Node>, now: Option<&Node>, dependency: Dependency) -> bool {
    match (base, now) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            let children = dependency == Dependency::Children && a.children_changed != b.children_changed;
            a.changed == b.changed && !children
        }
        _ => false,
    }
}
