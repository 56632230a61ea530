//! Operations on nodes as somebody makes them: permissions and quotas checked, then done on a tree. Which tree,
//! the store's or a transaction's, is not known here.

use std::sync::Arc;

use ring_abi::xs_wire::XsError;

use super::access::{Perms, Who};
use super::path::Path;
use super::quota::{Allowance, Quota};
use super::tree::{Fresh, Generation, Node, Tree};
use crate::permission::Permission;

/// A change to nodes, as a value: a transaction keeps these and makes them again when it commits.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(Path, Vec<u8>),
    Mkdir(Path),
    Rm(Path),
    SetPerms(Path, Perms),
}

impl Change {
    pub(super) fn path(&self) -> &Path {
        match self {
            Change::Write(path, _) | Change::Mkdir(path) | Change::Rm(path) | Change::SetPerms(path, _) => {
                path
            }
        }
    }

    /// Bytes it takes to keep this.
    pub(super) fn len(&self) -> usize {
        let rest = match self {
            Change::Write(_, value) => value.len(),
            Change::SetPerms(_, perms) => size_of_val(&**perms),
            Change::Mkdir(_) | Change::Rm(_) => 0,
        };
        size_of::<Change>() + self.path().as_str().len() + rest
    }
}

/// A change that was made, as watches need to know it.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) path: Path,
    /// Whoever may read by any of these may be told: the node's list (old and new), and its parent's.
    pub(super) readable: Vec<Perms>,
    /// What was taken out, if that is what happened.
    pub(super) removed: Option<Arc<Node>>,
}

/// What a request needs to be allowed to do with a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Read,
    Write,
    Own,
}

/// A tree as one domain sees it.
pub(super) struct View<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) generation: &'a mut Generation,
    pub(super) who: Who,
    pub(super) allowance: &'a mut Allowance,
}

impl View<'_> {
    /// A node that may be read.
    ///
    /// # Errors
    /// ENOENT, or EACCES where not even that may be known.
    pub(super) fn read(&self, path: &Path) -> Result<&Node, XsError> {
        self.node(path, Need::Read)
    }

    /// Makes a change; `None` when there was nothing to change.
    ///
    /// # Errors
    /// EACCES, ENOENT, EPERM, EINVAL as the request; ENOSPC beyond a quota. The tree is then as before.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Option<Effect>, XsError> {
        match change {
            Change::Write(path, value) => self.write(path, value).map(Some),
            Change::Mkdir(path) => self.mkdir(path),
            Change::Rm(path) => self.rm(path),
            Change::SetPerms(path, perms) => self.set_perms(path, perms).map(Some),
        }
    }

    fn write(&mut self, path: &Path, value: &[u8]) -> Result<Effect, XsError> {
        match self.node(path, Need::Write) {
            Ok(node) => {
                let size = node_size(&node.perms, value.len(), node.names_len());
                self.check(Quota::NodeSize, size)?;
            }
            Err(XsError::ENOENT) => self.create(path, value.len())?,
            Err(e) => return Err(e),
        }
        let generation = self.next();
        self.tree.set_value(path, value, generation);
        Ok(self.changed(path, None))
    }

    fn mkdir(&mut self, path: &Path) -> Result<Option<Effect>, XsError> {
        match self.node(path, Need::Write) {
            Ok(_) => Ok(None),
            Err(XsError::ENOENT) => {
                self.create(path, 0)?;
                Ok(Some(self.changed(path, None)))
            }
            Err(e) => Err(e),
        }
    }

    fn rm(&mut self, path: &Path) -> Result<Option<Effect>, XsError> {
        match self.node(path, Need::Write) {
            // Nothing to remove is fine as long as it would have had a place.
            Err(XsError::ENOENT) if self.tree.get(&path.parent()).is_some() => return Ok(None),
            found => found?,
        };
        let mut effect = self.changed(path, None);
        let generation = self.next();
        effect.removed = Some(self.tree.remove(path, generation).ok_or(XsError::EINVAL)?);
        Ok(Some(effect))
    }

    fn set_perms(&mut self, path: &Path, perms: &Perms) -> Result<Effect, XsError> {
        self.check(Quota::Permissions, perms.len())?;
        let node = self.node(path, Need::Own)?;
        if !self.who.privileged() && perms[0].domid != node.owner() {
            return Err(XsError::EPERM);
        }
        let (before, size) = (node.perms.clone(), node_size(perms, node.value.len(), node.names_len()));
        self.check(Quota::NodeSize, size)?;
        let generation = self.next();
        self.tree.set_perms(path, perms.clone(), generation);
        Ok(self.changed(path, Some(before)))
    }

    /// Makes a node, and the missing ones above it, with the permissions of the nearest one there is; a guest owns
    /// what it makes.
    fn create(&mut self, path: &Path, value_len: usize) -> Result<(), XsError> {
        let (above, missing) = self.tree.nearest(path);
        let mut perms = above.perms.clone();
        let names: Vec<usize> = path.names().map(str::len).collect();
        let new = &names[names.len() - missing..];
        let mut sizes = vec![node_size(&perms, above.value.len(), above.names_len() + new[0] + 1)];
        sizes.extend(new[1..].iter().map(|child| node_size(&perms, 0, child + 1)));
        sizes.push(node_size(&perms, value_len, 0));
        if !self.who.privileged() {
            Arc::make_mut(&mut perms)[0].domid = self.who.domid;
            self.check(Quota::Nodes, self.tree.owned(self.who.domid) as usize + missing)?;
        }
        self.check(Quota::NodeSize, sizes.into_iter().max().unwrap_or(0))?;
        let generation = self.next();
        self.tree.create(path, &Fresh { perms, generation });
        Ok(())
    }

    /// The node, if it is there and may be used so. Whoever may not use what is above a missing node is not even
    /// told that it is missing.
    fn node(&self, path: &Path, need: Need) -> Result<&Node, XsError> {
        match self.tree.get(path) {
            Some(node) if self.permits(&node.perms, need) => Ok(node),
            Some(_) => Err(XsError::EACCES),
            None => {
                let need = if need == Need::Own { Need::Write } else { need };
                let told = self.permits(&self.tree.nearest(path).0.perms, need);
                Err(if told { XsError::ENOENT } else { XsError::EACCES })
            }
        }
    }

    fn permits(&self, perms: &Perms, need: Need) -> bool {
        match need {
            Need::Read => self.who.access(perms).reads(),
            Need::Write => self.who.access(perms).writes(),
            Need::Own => self.who.owns(perms),
        }
    }

    fn changed(&self, path: &Path, before: Option<Perms>) -> Effect {
        let lists = [self.tree.get(path), self.tree.get(&path.parent())];
        let readable = lists.into_iter().flatten().map(|n| n.perms.clone()).chain(before).collect();
        Effect { path: path.clone(), readable, removed: None }
    }

    fn check(&mut self, quota: Quota, used: usize) -> Result<(), XsError> {
        match self.allowance.allows(quota, used) {
            true => Ok(()),
            false => Err(XsError::ENOSPC),
        }
    }

    fn next(&mut self) -> Generation {
        *self.generation += 1;
        *self.generation
    }
}

/// What xenstored counts for a node: its header (16 bytes) and all it holds.
fn node_size(perms: &Perms, value: usize, names: usize) -> usize {
    /// Bytes of a permission in xenstored's database; ours are smaller.
    const PERMISSION: usize = 2 * size_of::<u32>();
    const { assert!(size_of::<Permission>() <= PERMISSION) };
    16 + perms.len() * PERMISSION + value + names
}
