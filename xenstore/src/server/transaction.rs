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
    /// Nodes touched and changes made, deep ones counted for more.
    touched: usize,
    /// Bytes of the dependencies and the log.
    recorded: usize,
    /// The store's count of changes at the start.
    pub(super) began: u64,
    /// The error of the commit, once it can only fail.
    failed: Option<XsError>,
}

impl Transaction {
    pub(super) fn new(tree: &Tree, now: u64) -> Transaction {
        Transaction {
            base: tree.clone(),
            tree: tree.branch(),
            dependencies: BTreeMap::new(),
            log: Vec::new(),
            touched: 0,
            recorded: 0,
            began: now,
            failed: None,
        }
    }

    /// Drops the old tree. Further requests are made on the new one; the commit fails with EAGAIN.
    pub(super) fn expire(&mut self, tree: &Tree, now: u64) {
        *self = Transaction { failed: Some(XsError::EAGAIN), ..Transaction::new(tree, now) };
    }

    /// Bytes this holds: what it has recorded, and the nodes that its tree does not share with the store's.
    pub(super) fn held(&self) -> usize {
        self.recorded + self.tree.own_bytes()
    }

    /// Nodes touched and changes made: what a commit costs.
    pub(super) fn touched(&self) -> usize {
        self.touched
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
        self.grow(path, size_of::<(Path, Dependency)>() + path.as_str().len(), others, allowance)?;
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
            let missing = self.base.nearest(path).1;
            let nearest = path.upwards().nth(missing).unwrap_or("/");
            self.depend_on(&Path::fixed(nearest), Dependency::Node, others, allowance)?;
        }
        self.grow(path, change.len(), others, allowance)?;
        self.log.push(change.clone());
        Ok(())
    }

    /// Removes the last recorded change, which was refused.
    pub(super) fn unrecord(&mut self) {
        if let Some(change) = self.log.pop() {
            self.recorded -= change.len();
            self.touched -= weight(change.path());
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
        let mut effects = Effects::default();
        for change in &self.log {
            let mut view = TreeView {
                tree: &mut outcome,
                generation: &mut *generation,
                credentials,
                allowance: &mut *allowance,
            };
            view.apply(change)
                .map_err(|_| XsError::EAGAIN)?
                .into_iter()
                .for_each(|effect| effects.add(effect));
        }
        *tree = outcome;
        Ok(effects.in_order)
    }

    /// Checks the memory that a change has taken.
    ///
    /// # Errors
    /// ENOMEM beyond the quota; the transaction then cannot commit.
    pub(super) fn check_memory(&mut self, others: usize, allowance: &mut Allowance) -> Result<(), XsError> {
        if allowance.allows(Quota::Memory, others + self.held()) {
            return Ok(());
        }
        self.failed = Some(XsError::ENOMEM);
        Err(XsError::ENOMEM)
    }

    fn grow(
        &mut self,
        path: &Path,
        by: usize,
        others: usize,
        allowance: &mut Allowance,
    ) -> Result<(), XsError> {
        if !allowance.allows(Quota::TransactionNodes, self.touched + weight(path)) {
            self.failed = Some(XsError::ENOMEM);
            return Err(XsError::ENOSPC);
        }
        self.check_memory(others + by, allowance)?;
        self.touched += weight(path);
        self.recorded += by;
        Ok(())
    }
}

/// What a path counts as for the quota of touched nodes: looking up a node takes as long as its path is deep, and each is
/// looked up several times by a commit.
fn weight(path: &Path) -> usize {
    1 + path.names().count() / 16
}

/// The effects of a commit: one for each node, as in xenstored, however often the transaction has changed it.
#[derive(Default)]
struct Effects {
    in_order: Vec<Effect>,
    by_path: BTreeMap<Path, usize>,
}

impl Effects {
    fn add(&mut self, effect: Effect) {
        match self.by_path.get(&effect.path) {
            None => {
                self.by_path.insert(effect.path.clone(), self.in_order.len());
                self.in_order.push(effect);
            }
            // Who could read the node before, or can now, gets the event; nobody else has seen what was in between.
            Some(at) => {
                let known = &mut self.in_order[*at];
                known.readable.truncate(FIRST_LISTS);
                known.readable.extend(effect.readable);
                known.removed = known.removed.take().or(effect.removed);
            }
        }
    }
}

/// The lists of permissions of one effect, at most: the node's before and after, and its parent's.
const FIRST_LISTS: usize = 3;

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
