//! The nodes, in a persistent tree: cloning it takes constant time, and a change copies only the nodes on its path, of whose children
//! they share all but one part.
//!
//! The tree holds nodes, their generations and the number of nodes of each owner; it checks neither permissions nor
//! quotas.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::access::Perms;
use super::children::Children;
use super::path::Path;
use super::record;
use crate::permission::{Access, Permission};
use ring_abi::DomId;

/// A number unique to each change.
pub(super) type Generation = u64;

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Arc<[u8]>,
    pub(super) perms: Perms,
    /// The last change of value or permissions.
    pub(super) changed: Generation,
    /// The last addition or removal of a child.
    pub(super) children_changed: Generation,
    children: Children<Arc<Node>>,
    /// Bytes of the children's names, each with its NUL.
    names_len: usize,
}

/// The initial permissions and generation of a node.
#[derive(Clone)]
pub(super) struct NewNode {
    pub(super) perms: Perms,
    pub(super) generation: Generation,
}

impl Node {
    fn new(new: &NewNode) -> Node {
        Node {
            value: Arc::new([]),
            perms: new.perms.clone(),
            changed: new.generation,
            children_changed: new.generation,
            children: Children::default(),
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

    /// The node below this one by the names of its path's components.
    pub(super) fn descend<'n, 'p>(&'n self, names: impl Iterator<Item = &'p str>) -> Option<&'n Node> {
        let mut here = self;
        for name in names {
            here = here.child(name)?;
        }
        Some(here)
    }

    /// Bytes of the node itself, with its list of children, at most: clones share parts of it.
    fn bytes(&self) -> usize {
        /// A child's entry in the list: name, node, and what the list itself and the counts of references take.
        const ENTRY: usize = 2 * size_of::<(Arc<str>, Arc<Node>)>();
        size_of::<Node>() + ENTRY * (1 + self.children.len())
    }

    /// This node and all below it, in no particular order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Node> {
        let mut stack = vec![self];
        std::iter::from_fn(move || {
            let node = stack.pop()?;
            stack.extend(node.children.iter().map(|(_, child)| &**child));
            Some(node)
        })
    }
}

/// Drops children iteratively: nested drops would be as deep as the longest path allows.
impl Drop for Node {
    fn drop(&mut self) {
        let mut rest: Vec<_> = std::mem::take(&mut self.children).into_own().collect();
        while let Some(node) = rest.pop() {
            if let Some(mut last) = Arc::into_inner(node) {
                rest.extend(std::mem::take(&mut last.children).into_own());
            }
        }
    }
}

/// All nodes, and the number of nodes that each domain owns.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: Arc<Node>,
    special: Arc<BTreeMap<&'static str, Arc<Node>>>,
    owned: Arc<BTreeMap<DomId, u32>>,
    /// Bytes of the nodes that were made or copied for this tree, since it was branched off another.
    own_bytes: usize,
    /// The changes since [`Tree::take_records`], where they are recorded.
    records: Option<Vec<u8>>,
}

impl Tree {
    /// Makes xenstored's initial tree: `/tool/xenstored` and the two special nodes, for dom0 alone.
    pub(super) fn new() -> Tree {
        let mut tree = Tree::bare();
        let new = Tree::dom0();
        tree.create(&Path::fixed("/tool/xenstored"), &new);
        tree
    }

    fn dom0() -> NewNode {
        NewNode { perms: Arc::new([Permission::new(DomId::DOM0, Access::None)]), generation: 1 }
    }

    /// Makes a tree of the root and the special nodes alone.
    pub(super) fn bare() -> Tree {
        let new = Tree::dom0();
        let node = || Arc::new(Node::new(&new));
        let special = [super::INTRODUCE_DOMAIN, super::RELEASE_DOMAIN].map(|name| (name, node()));
        let owned = BTreeMap::from([(DomId::DOM0, 1 + special.len() as u32)]);
        Tree {
            root: node(),
            special: Arc::new(special.into()),
            owned: Arc::new(owned),
            own_bytes: 0,
            records: None,
        }
    }

    /// Records changes from now on.
    pub(super) fn record(&mut self) {
        self.records.get_or_insert_default();
    }

    /// Records changes no more.
    pub(super) fn stop_recording(&mut self) {
        self.records = None;
    }

    /// Appends the bytes of the changes since the last call to `out`.
    pub(super) fn take_records(&mut self, out: &mut Vec<u8>) {
        if let Some(records) = &mut self.records {
            out.append(records);
        }
    }

    /// Passes `each` what appends a node's record, for every node after its parent, until it fails.
    pub(super) fn encode_nodes<E>(
        &self,
        each: &mut impl FnMut(&mut dyn FnMut(&mut Vec<u8>)) -> Result<(), E>,
    ) -> Result<(), E> {
        let special = self.special.iter().map(|(name, node)| (Path::fixed(name), node));
        let mut stack: Vec<(Path, &Arc<Node>)> = special.chain([(Path::root(), &self.root)]).collect();
        while let Some((path, node)) = stack.pop() {
            let generations = [node.changed, node.children_changed];
            each(&mut |out| record::node(out, generations, &path, &node.perms, &node.value))?;
            let above = if path.is_root() { "" } else { path.as_str() };
            let children = node.children.iter().map(|(name, child)| (format!("{above}/{name}"), child));
            stack.extend(children.map(|(path, child)| (Path::fixed(&path), child)));
        }
        Ok(())
    }

    /// Adds a node of an image, with the generations of its last change and of its children's. Only the root and the special
    /// nodes exist already. `None` where it does, or its parent does not.
    pub(super) fn restore(
        &mut self,
        path: &Path,
        perms: Perms,
        value: &[u8],
        [changed, children_changed]: [Generation; 2],
    ) -> Option<()> {
        let owner = perms[0].domid;
        if !path.is_root() && !path.is_special() {
            let parent = self.get_mut(&path.parent())?;
            if parent.child(path.last()).is_some() {
                return None;
            }
            let node = Node::new(&NewNode { perms: perms.clone(), generation: changed });
            parent.children.insert(path.last().into(), Arc::new(node));
            parent.names_len += path.last().len() + 1;
            self.count(owner, 1);
        }
        let node = self.get_mut(path)?;
        let before = node.owner();
        node.perms = perms;
        node.value = value.into();
        node.changed = changed;
        node.children_changed = children_changed;
        self.count(before, -1);
        self.count(owner, 1);
        Some(())
    }

    /// A clone that counts the bytes of its own from now on, and does not record its changes.
    pub(super) fn branch(&self) -> Tree {
        Tree { own_bytes: 0, records: None, ..self.clone() }
    }

    /// Bytes of the nodes that were made or copied for this tree since it was branched off another. What it has removed of
    /// them is still counted.
    pub(super) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    pub(super) fn get(&self, path: &Path) -> Option<&Node> {
        match path.is_special() {
            true => self.special.get(path.as_str()).map(|node| &**node),
            false => self.root.descend(path.names()),
        }
    }

    /// The nearest existing ancestor of `path`, and the number of components below it.
    pub(super) fn nearest(&self, path: &Path) -> (&Node, usize) {
        let mut here = &*self.root;
        let mut missing = path.names().count();
        if path.is_special() {
            return (here, 1);
        }
        for name in path.names() {
            let Some(child) = here.child(name) else { break };
            // A node is not its own ancestor.
            if missing == 1 {
                break;
            }
            here = child;
            missing -= 1;
        }
        (here, missing)
    }

    /// The number of nodes that a domain owns.
    pub(super) fn owned(&self, domid: DomId) -> u32 {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    /// Creates a node and its missing ancestors. An existing node is not changed.
    pub(super) fn create(&mut self, path: &Path, new: &NewNode) {
        if path.is_special() {
            return;
        }
        let mut created = 0;
        let own_bytes = &mut self.own_bytes;
        let mut here = make_mut(&mut self.root, own_bytes);
        for name in path.names() {
            if here.child(name).is_none() {
                let child = Node::new(new);
                *own_bytes += child.bytes() + name.len();
                here.children.insert(name.into(), Arc::new(child));
                here.names_len += name.len() + 1;
                here.children_changed = new.generation;
                created += 1;
            }
            let Some(child) = here.children.get_mut(name) else { return };
            here = make_mut(child, own_bytes);
        }
        if created > 0 {
            self.note(|out| record::create(out, new.generation, path, &new.perms));
        }
        self.count(new.perms[0].domid, created);
    }

    /// Sets a node's value; a missing node is ignored.
    pub(super) fn set_value(&mut self, path: &Path, value: &[u8], generation: Generation) {
        if let Some(node) = self.get_mut(path) {
            node.value = value.into();
            node.changed = generation;
            self.own_bytes += value.len();
            self.note(|out| record::set_value(out, generation, path, value));
        }
    }

    /// Sets a node's permissions; a missing node is ignored.
    pub(super) fn set_perms(&mut self, path: &Path, perms: Perms, generation: Generation) {
        let new_owner = perms[0].domid;
        let Some(node) = self.get_mut(path) else { return };
        let old_owner = node.owner();
        node.perms = perms.clone();
        node.changed = generation;
        self.note(|out| record::set_perms(out, generation, path, &perms));
        self.count(old_owner, -1);
        self.count(new_owner, 1);
    }

    /// Removes a node and all below it. The root and special nodes cannot be removed.
    pub(super) fn remove(&mut self, path: &Path, generation: Generation) -> Option<Arc<Node>> {
        if path.is_root() || path.is_special() {
            return None;
        }
        self.get(path)?;
        let parent = self.get_mut(&path.parent())?;
        let node = parent.children.remove(path.last())?;
        parent.names_len -= path.last().len() + 1;
        parent.children_changed = generation;
        self.note(|out| record::remove(out, generation, path));
        for removed in node.all() {
            self.count(removed.owner(), -1);
        }
        Some(node)
    }

    /// The topmost nodes that a domain owns.
    pub(super) fn topmost_owned(&self, domid: DomId) -> Vec<Path> {
        let mut found = Vec::new();
        let mut stack = vec![(String::new(), &*self.root)];
        while let Some((path, node)) = stack.pop() {
            if node.owner() == domid && !path.is_empty() {
                found.push(Path::fixed(&path));
            } else {
                stack.extend(node.children().map(|(name, child)| (format!("{path}/{name}"), &**child)));
            }
        }
        found
    }

    /// Every node whose permissions have an entry for a domain other than the owner's entry.
    pub(super) fn naming(&self, domid: DomId) -> Vec<Path> {
        let names = |node: &Node| node.perms[1..].iter().any(|p| p.domid == domid);
        let special = self.special.iter().filter(|(_, node)| names(node)).map(|(name, _)| Path::fixed(name));
        let mut found: Vec<_> = special.collect();
        let mut stack = vec![(String::new(), &*self.root)];
        while let Some((path, node)) = stack.pop() {
            if names(node) {
                found.push(if path.is_empty() { Path::root() } else { Path::fixed(&path) });
            }
            stack.extend(node.children().map(|(name, child)| (format!("{path}/{name}"), &**child)));
        }
        found
    }

    /// Whether the counts of names and of owned nodes match the nodes.
    pub(super) fn is_consistent(&self) -> bool {
        let mut owned = BTreeMap::new();
        let nodes = self.root.all().chain(self.special.values().map(|node| &**node));
        let names_right = nodes.fold(true, |right, node| {
            *owned.entry(node.owner()).or_insert(0) += 1;
            right && node.names_len == node.children.iter().map(|(name, _)| name.len() + 1).sum::<usize>()
        });
        names_right && owned == *self.owned
    }

    fn get_mut(&mut self, path: &Path) -> Option<&mut Node> {
        self.get(path)?;
        if path.is_special() {
            return Arc::make_mut(&mut self.special).get_mut(path.as_str()).map(Arc::make_mut);
        }
        let own_bytes = &mut self.own_bytes;
        let mut here = make_mut(&mut self.root, own_bytes);
        for name in path.names() {
            here = make_mut(here.children.get_mut(name)?, own_bytes);
        }
        Some(here)
    }

    /// Records a change that was made.
    fn note(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Some(records) = &mut self.records {
            encode(records);
        }
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

/// A node to be changed, which is copied where another tree has it too; its bytes are counted then.
fn make_mut<'n>(node: &'n mut Arc<Node>, own_bytes: &mut usize) -> &'n mut Node {
    if Arc::strong_count(node) > 1 {
        *own_bytes += node.bytes();
    }
    Arc::make_mut(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_node(domid: u16, generation: Generation) -> NewNode {
        NewNode { perms: Arc::new([Permission::new(DomId(domid), Access::None)]), generation }
    }

    #[test]
    fn clone_does_not_see_later_changes() {
        let mut tree = Tree::new();
        tree.create(&Path::fixed("/a/b"), &new_node(1, 2));
        let before = tree.clone();
        tree.set_value(&Path::fixed("/a/b"), b"x", 3);
        tree.remove(&Path::fixed("/tool"), 4);
        assert_eq!(&*before.get(&Path::fixed("/a/b")).unwrap().value, b"");
        assert!(before.get(&Path::fixed("/tool/xenstored")).is_some());
        assert_eq!(&*tree.get(&Path::fixed("/a/b")).unwrap().value, b"x");
        assert!(tree.get(&Path::fixed("/tool/xenstored")).is_none());
        assert_eq!((tree.owned(DomId(0)), tree.owned(DomId(1)), before.owned(DomId(0))), (3, 2, 5));
    }

    #[test]
    fn nearest_returns_existing_ancestor_and_missing_count() {
        let mut tree = Tree::new();
        tree.create(&Path::fixed("/a"), &new_node(5, 2));
        let nearest = |p| {
            let (node, missing) = tree.nearest(&Path::fixed(p));
            (node.owner().0, missing)
        };
        assert_eq!(nearest("/a/b/c"), (5, 2));
        assert_eq!(nearest("/a"), (0, 1));
        assert_eq!(nearest("/x/y"), (0, 2));
        assert_eq!(nearest("/"), (0, 0));
    }

    #[test]
    fn deepest_path_is_created_and_dropped() {
        let mut tree = Tree::new();
        let path = Path::fixed(&"/a".repeat(1536));
        tree.create(&path, &new_node(1, 2));
        assert_eq!(tree.owned(DomId(1)), 1536);
        let snapshot = tree.clone();
        tree.remove(&Path::fixed("/a"), 3);
        assert_eq!(tree.owned(DomId(1)), 0);
        drop(snapshot);
    }
}
