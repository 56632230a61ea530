//! The nodes: a persistent tree. Cloning it takes no time; what is then changed is copied along its path only.
//!
//! Here is no permission check and no quota, only nodes, their generations, and who owns how many.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::access::Perms;
use super::path::Path;
use crate::DomId;
use crate::permission::{Access, Permission};

/// A number that no two changes share.
pub(super) type Generation = u64;

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Arc<[u8]>,
    pub(super) perms: Perms,
    /// When value or permissions last changed.
    pub(super) changed: Generation,
    /// When a child was last added or removed.
    pub(super) children_changed: Generation,
    children: BTreeMap<Arc<str>, Arc<Node>>,
    /// Bytes of the children's names, each with its NUL.
    names_len: usize,
}

/// What a new node starts with.
#[derive(Clone)]
pub(super) struct Fresh {
    pub(super) perms: Perms,
    pub(super) generation: Generation,
}

impl Node {
    fn new(fresh: &Fresh) -> Node {
        Node {
            value: Arc::new([]),
            perms: fresh.perms.clone(),
            changed: fresh.generation,
            children_changed: fresh.generation,
            children: BTreeMap::new(),
            names_len: 0,
        }
    }

    pub(super) fn owner(&self) -> DomId {
        self.perms[0].domid
    }

    pub(super) fn child(&self, name: &str) -> Option<&Arc<Node>> {
        self.children.get(name)
    }

    pub(super) fn children(&self) -> impl Iterator<Item = (&str, &Arc<Node>)> {
        self.children.iter().map(|(name, node)| (&**name, node))
    }

    /// Bytes of all the children's names, each with its NUL.
    pub(super) fn names_len(&self) -> usize {
        self.names_len
    }

    /// The node these names lead to.
    pub(super) fn descend<'n, 'p>(&'n self, names: impl Iterator<Item = &'p str>) -> Option<&'n Node> {
        let mut here = self;
        for name in names {
            here = here.child(name)?;
        }
        Some(here)
    }

    /// This node and all below it, in no particular order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Node> {
        let mut stack = vec![self];
        std::iter::from_fn(move || {
            let node = stack.pop()?;
            stack.extend(node.children.values().map(|child| &**child));
            Some(node)
        })
    }
}

/// A chain of nodes as deep as a path may be would otherwise be dropped by as many nested calls.
impl Drop for Node {
    fn drop(&mut self) {
        let mut rest: Vec<_> = std::mem::take(&mut self.children).into_values().collect();
        while let Some(node) = rest.pop() {
            if let Some(mut last) = Arc::into_inner(node) {
                rest.extend(std::mem::take(&mut last.children).into_values());
            }
        }
    }
}

/// All nodes, and how many each domain owns.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: Arc<Node>,
    special: Arc<BTreeMap<&'static str, Arc<Node>>>,
    owned: Arc<BTreeMap<DomId, u32>>,
}

impl Tree {
    /// What xenstored starts with: `/tool/xenstored` and the two special nodes, all dom0's alone.
    pub(super) fn new() -> Tree {
        let fresh = Fresh { perms: Arc::new([Permission::new(0, Access::None)]), generation: 1 };
        let node = || Arc::new(Node::new(&fresh));
        let special = [super::INTRODUCE_DOMAIN, super::RELEASE_DOMAIN].map(|name| (name, node()));
        let owned = BTreeMap::from([(0, 1 + special.len() as u32)]);
        let mut tree = Tree { root: node(), special: Arc::new(special.into()), owned: Arc::new(owned) };
        tree.create(&Path::fixed("/tool/xenstored"), &fresh);
        tree
    }

    pub(super) fn get(&self, path: &Path) -> Option<&Node> {
        match path.is_special() {
            true => self.special.get(path.as_str()).map(|node| &**node),
            false => self.root.descend(path.names()),
        }
    }

    /// The nearest node above `path` that is there, and how many names below it are not.
    pub(super) fn nearest(&self, path: &Path) -> (&Node, usize) {
        let (mut here, mut missing) = (&*self.root, path.names().count());
        if path.is_special() {
            return (here, 1);
        }
        for name in path.names() {
            let Some(child) = here.child(name) else { break };
            // The node itself is not above itself.
            if missing == 1 {
                break;
            }
            (here, missing) = (child, missing - 1);
        }
        (here, missing)
    }

    /// How many nodes a domain owns.
    pub(super) fn owned(&self, domid: DomId) -> u32 {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    /// Makes the node and all that is missing above it. A node that is there stays as it is.
    pub(super) fn create(&mut self, path: &Path, fresh: &Fresh) {
        if path.is_special() {
            return;
        }
        let mut made = 0;
        let mut here = Arc::make_mut(&mut self.root);
        for name in path.names() {
            if here.child(name).is_none() {
                here.children.insert(name.into(), Arc::new(Node::new(fresh)));
                here.names_len += name.len() + 1;
                here.children_changed = fresh.generation;
                made += 1;
            }
            let Some(child) = here.children.get_mut(name) else { return };
            here = Arc::make_mut(child);
        }
        self.count(fresh.perms[0].domid, made);
    }

    /// Sets a node's value; nothing when there is no such node.
    pub(super) fn set_value(&mut self, path: &Path, value: &[u8], generation: Generation) {
        if let Some(node) = self.get_mut(path) {
            node.value = value.into();
            node.changed = generation;
        }
    }

    /// Sets a node's permissions; nothing when there is no such node.
    pub(super) fn set_perms(&mut self, path: &Path, perms: Perms, generation: Generation) {
        let new_owner = perms[0].domid;
        let Some(node) = self.get_mut(path) else { return };
        let old_owner = node.owner();
        node.perms = perms;
        node.changed = generation;
        self.count(old_owner, -1);
        self.count(new_owner, 1);
    }

    /// Takes a node and all below it out. The root and special nodes stay.
    pub(super) fn remove(&mut self, path: &Path, generation: Generation) -> Option<Arc<Node>> {
        if path.is_root() || path.is_special() {
            return None;
        }
        self.get(path)?;
        let parent = self.get_mut(&path.parent())?;
        let node = parent.children.remove(path.last())?;
        parent.names_len -= path.last().len() + 1;
        parent.children_changed = generation;
        for gone in node.all() {
            self.count(gone.owner(), -1);
        }
        Some(node)
    }

    /// The topmost nodes that a domain owns.
    pub(super) fn topmost_owned(&self, domid: DomId) -> Vec<Path> {
        let (mut found, mut stack) = (Vec::new(), vec![(String::new(), &*self.root)]);
        while let Some((path, node)) = stack.pop() {
            if node.owner() == domid && !path.is_empty() {
                found.push(Path::fixed(&path));
            } else {
                stack.extend(node.children().map(|(name, child)| (format!("{path}/{name}"), &**child)));
            }
        }
        found
    }

    /// Every node whose list, the owner's entry aside, names a domain.
    pub(super) fn naming(&self, domid: DomId) -> Vec<Path> {
        let names = |node: &Node| node.perms[1..].iter().any(|p| p.domid == domid);
        let special = self.special.iter().filter(|(_, node)| names(node)).map(|(name, _)| Path::fixed(name));
        let (mut found, mut stack) = (special.collect::<Vec<_>>(), vec![(String::new(), &*self.root)]);
        while let Some((path, node)) = stack.pop() {
            if names(node) {
                found.push(if path.is_empty() { Path::root() } else { Path::fixed(&path) });
            }
            stack.extend(node.children().map(|(name, child)| (format!("{path}/{name}"), &**child)));
        }
        found
    }

    /// Counts everything anew and compares.
    pub(super) fn is_consistent(&self) -> bool {
        let mut owned = BTreeMap::new();
        let nodes = self.root.all().chain(self.special.values().map(|node| &**node));
        let names_right = nodes.fold(true, |right, node| {
            *owned.entry(node.owner()).or_insert(0) += 1;
            right && node.names_len == node.children.keys().map(|name| name.len() + 1).sum::<usize>()
        });
        names_right && owned == *self.owned
    }

    fn get_mut(&mut self, path: &Path) -> Option<&mut Node> {
        self.get(path)?;
        if path.is_special() {
            return Arc::make_mut(&mut self.special).get_mut(path.as_str()).map(Arc::make_mut);
        }
        let mut here = Arc::make_mut(&mut self.root);
        for name in path.names() {
            here = Arc::make_mut(here.children.get_mut(name)?);
        }
        Some(here)
    }

    fn count(&mut self, domid: DomId, by: i32) {
        if by == 0 {
            return;
        }
        let owned = Arc::make_mut(&mut self.owned);
        let count = owned.entry(domid).or_insert(0);
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            owned.remove(&domid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(domid: DomId, generation: Generation) -> Fresh {
        Fresh { perms: Arc::new([Permission::new(domid, Access::None)]), generation }
    }

    #[test]
    fn a_clone_does_not_see_what_comes_after() {
        let mut tree = Tree::new();
        tree.create(&Path::fixed("/a/b"), &fresh(1, 2));
        let before = tree.clone();
        tree.set_value(&Path::fixed("/a/b"), b"x", 3);
        tree.remove(&Path::fixed("/tool"), 4);
        assert_eq!(&*before.get(&Path::fixed("/a/b")).unwrap().value, b"");
        assert!(before.get(&Path::fixed("/tool/xenstored")).is_some());
        assert_eq!(&*tree.get(&Path::fixed("/a/b")).unwrap().value, b"x");
        assert!(tree.get(&Path::fixed("/tool/xenstored")).is_none());
        assert_eq!((tree.owned(0), tree.owned(1), before.owned(0)), (3, 2, 5));
    }

    #[test]
    fn nearest_counts_what_is_missing() {
        let mut tree = Tree::new();
        tree.create(&Path::fixed("/a"), &fresh(5, 2));
        let nearest = |p| {
            let (node, missing) = tree.nearest(&Path::fixed(p));
            (node.owner(), missing)
        };
        assert_eq!(nearest("/a/b/c"), (5, 2));
        assert_eq!(nearest("/a"), (0, 1));
        assert_eq!(nearest("/x/y"), (0, 2));
        assert_eq!(nearest("/"), (0, 0));
    }

    #[test]
    fn the_deepest_path_is_made_and_dropped() {
        let mut tree = Tree::new();
        let path = Path::fixed(&"/a".repeat(1536));
        tree.create(&path, &fresh(1, 2));
        assert_eq!(tree.owned(1), 1536);
        let snapshot = tree.clone();
        tree.remove(&Path::fixed("/a"), 3);
        assert_eq!(tree.owned(1), 0);
        drop(snapshot);
    }
}
