//! Operations on nodes: permissions and quotas are checked, then the operation is made on a tree, which is the store's
//! or a transaction's.

use std::sync::Arc;

use ring_abi::xs_wire::XsError;

use super::access::{Credentials, Perms};
use super::path::Path;
use super::quota::{Allowance, Quota};
use super::tree::{Generation, NewNode, Node, Tree};
use crate::permission::Permission;

/// A change to nodes as a value: a transaction logs its changes and makes them again when it commits.
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

    /// Bytes of memory that the change takes.
    pub(super) fn len(&self) -> usize {
        let rest = match self {
            Change::Write(_, value) => value.len(),
            Change::SetPerms(_, perms) => size_of_val(&**perms),
            Change::Mkdir(_) | Change::Rm(_) => 0,
        };
        size_of::<Change>() + self.path().as_str().len() + rest
    }
}

/// A change that was made, for firing watches.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) path: Path,
    /// The node's permissions (old and new) and its parent's: an event goes to those who may read by any of them.
    pub(super) readable: Vec<Perms>,
    /// The node that was removed, if the change is a removal.
    pub(super) removed: Option<Arc<Node>>,
}

/// The right that a request needs at a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Read,
    Write,
    Own,
}

/// A tree with the credentials and quotas of one domain.
pub(super) struct TreeView<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) generation: &'a mut Generation,
    pub(super) credentials: Credentials,
    pub(super) allowance: &'a mut Allowance,
}

impl TreeView<'_> {
    /// Reads a node.
    ///
    /// # Errors
    /// EACCES where the node, or the nearest ancestor of a missing node, is not readable; else ENOENT for a missing
    /// node.
    pub(super) fn read(&self, path: &Path) -> Result<&Node, XsError> {
        self.node(path, Need::Read)
    }

    /// Makes a change; `None` when there was nothing to change.
    ///
    /// # Errors
    /// EACCES, ENOENT, EPERM and EINVAL as xenstored for each request; ENOSPC beyond a quota. The tree is then
    /// unchanged.
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
            // A missing node is no error as long as its parent exists.
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
        if !self.credentials.privileged() && perms[0].domid != node.owner() {
            return Err(XsError::EPERM);
        }
        let before = node.perms.clone();
        let size = node_size(perms, node.value.len(), node.names_len());
        self.check(Quota::NodeSize, size)?;
        let generation = self.next();
        self.tree.set_perms(path, perms.clone(), generation);
        Ok(self.changed(path, Some(before)))
    }

    /// Creates a node and its missing ancestors with the permissions of the nearest existing one; a guest owns the
    /// nodes that it creates.
    fn create(&mut self, path: &Path, value_len: usize) -> Result<(), XsError> {
        let (above, missing) = self.tree.nearest(path);
        let mut perms = above.perms.clone();
        let names: Vec<usize> = path.names().map(str::len).collect();
        let new = &names[names.len() - missing..];
        let mut sizes = vec![node_size(&perms, above.value.len(), above.names_len() + new[0] + 1)];
        sizes.extend(new[1..].iter().map(|child| node_size(&perms, 0, child + 1)));
        sizes.push(node_size(&perms, value_len, 0));
        if !self.credentials.privileged() {
            Arc::make_mut(&mut perms)[0].domid = self.credentials.domid;
            self.check(Quota::Nodes, self.tree.owned(self.credentials.domid) as usize + missing)?;
        }
        self.check(Quota::NodeSize, sizes.into_iter().max().unwrap_or(0))?;
        let generation = self.next();
        self.tree.create(path, &NewNode { perms, generation });
        Ok(())
    }

    /// The node, if the credentials have the right at it. For a missing node the nearest ancestor's permissions decide
    /// between ENOENT and EACCES.
    fn node(&self, path: &Path, need: Need) -> Result<&Node, XsError> {
        match self.tree.get(path) {
            Some(node) if self.permits(&node.perms, need) => Ok(node),
            Some(_) => Err(XsError::EACCES),
            None => {
                let need = if need == Need::Own { Need::Write } else { need };
                let permitted = self.permits(&self.tree.nearest(path).0.perms, need);
                Err(if permitted { XsError::ENOENT } else { XsError::EACCES })
            }
        }
    }

    fn permits(&self, perms: &Perms, need: Need) -> bool {
        match need {
            Need::Read => self.credentials.access(perms).reads(),
            Need::Write => self.credentials.access(perms).writes(),
            Need::Own => self.credentials.owns(perms),
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

/// The size of a node as xenstored counts it: its header (16 bytes), permissions, value and children's names.
fn node_size(perms: &Perms, value: usize, names: usize) -> usize {
    /// Bytes of a permission in xenstored's database, not less than here.
    const PERMISSION: usize = 2 * size_of::<u32>();
    const { assert!(size_of::<Permission>() <= PERMISSION) };
    16 + perms.len() * PERMISSION + value + names
}
