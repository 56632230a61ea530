//! A node's children in the order of their names, in parts that clones share: a change of one child copies its part and the list
//! of parts, however many children there are. A host has a child for each domain in several nodes, and every change below one of them
//! in a transaction copies that node.

use std::sync::Arc;

/// Most children in a part.
const PART: usize = 32;

/// Some of a node's children, in the order of their names.
type Part<T> = Vec<(Arc<str>, T)>;

/// Children of a node: a map from names.
#[derive(Clone, Debug)]
pub(super) struct Children<T> {
    /// None is empty, and each holds names before those of the next.
    parts: Vec<Arc<Part<T>>>,
    len: usize,
}

impl<T> Default for Children<T> {
    fn default() -> Self {
        Self { parts: Vec::new(), len: 0 }
    }
}

impl<T: Clone> Children<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.parts.iter().flat_map(|part| part.iter()).map(|(name, child)| (name, child))
    }

    pub(super) fn get(&self, name: &str) -> Option<&T> {
        let part = self.parts.get(self.part(name))?;
        find(part, name).ok().map(|at| &part[at].1)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        let number = self.part(name);
        let part = self.parts.get_mut(number)?;
        let at = find(part, name).ok()?;
        Some(&mut Arc::make_mut(part)[at].1)
    }

    /// Adds a child, in place of another of its name.
    pub(super) fn insert(&mut self, name: Arc<str>, child: T) {
        let number = self.part(&name);
        let Some(part) = self.parts.get_mut(number) else {
            self.parts.push(Arc::new(vec![(name, child)]));
            self.len += 1;
            return;
        };
        let found = find(part, &name);
        let part = Arc::make_mut(part);
        match found {
            Ok(at) => part[at].1 = child,
            Err(at) => {
                part.insert(at, (name, child));
                self.len += 1;
                if part.len() > PART {
                    let rest = part.split_off(PART / 2);
                    self.parts.insert(number + 1, Arc::new(rest));
                }
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<T> {
        let number = self.part(name);
        let part = self.parts.get_mut(number)?;
        let at = find(part, name).ok()?;
        let part = Arc::make_mut(part);
        let (_, child) = part.remove(at);
        self.len -= 1;
        let left = part.len();
        if left == 0 {
            self.parts.remove(number);
        } else if self.parts.get(number + 1).is_some_and(|next| left + next.len() <= PART / 2) {
            let next = self.parts.remove(number + 1);
            Arc::make_mut(&mut self.parts[number]).extend(next.iter().cloned());
        }
        Some(child)
    }

    /// The children that no clone has.
    pub(super) fn into_own(self) -> impl Iterator<Item = T> {
        self.parts.into_iter().filter_map(Arc::into_inner).flatten().map(|(_, child)| child)
    }

    /// The part that has this name, or would.
    fn part(&self, name: &str) -> usize {
        let behind =
            self.parts.partition_point(|part| part.first().is_some_and(|(first, _)| **first <= *name));
        behind.saturating_sub(1)
    }
}

/// Where a part has a name, or would.
fn find<T>(part: &[(Arc<str>, T)], name: &str) -> Result<usize, usize> {
    part.binary_search_by(|(other, _)| (**other).cmp(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn children_are_as_in_a_map_and_clones_keep_theirs(
            steps in proptest::collection::vec((0..120u8, 0..5u8), 1..600),
        ) {
            let (mut children, mut model) = (Children::default(), BTreeMap::new());
            let mut clones = Vec::new();
            for (step, (name, what)) in steps.into_iter().enumerate() {
                let name = name.to_string();
                match what {
                    0 | 1 => {
                        children.insert(name.as_str().into(), step);
                        model.insert(name, step);
                    }
                    2 => prop_assert_eq!(children.remove(&name), model.remove(&name)),
                    3 => {
                        if let Some(value) = children.get_mut(&name) {
                            *value += 1;
                        }
                        model.entry(name).and_modify(|value| *value += 1);
                    }
                    _ if step % 8 == 0 => clones.push((children.clone(), model.clone())),
                    _ => prop_assert_eq!(children.get(&name), model.get(&name)),
                }
            }
            clones.push((children, model));
            for (children, model) in clones {
                prop_assert!(children.iter().map(|(name, value)| (&**name, value)).eq(model.iter().map(|(name, value)| (name.as_str(), value))));
                prop_assert_eq!(children.len(), model.len());
                prop_assert!(children.parts.iter().all(|part| (1..=PART).contains(&part.len())));
            }
        }
    }

    #[test]
    fn change_of_one_of_many_copies_no_more_than_its_part() {
        let mut children = Children::default();
        (0..1000).for_each(|number| children.insert(number.to_string().into(), Arc::new(number)));
        let before = children.clone();
        *children.get_mut("500").unwrap() = Arc::new(0);
        let copied = children.iter().filter(|(_, child)| Arc::strong_count(child) > 1).count();
        assert!(copied < PART, "{copied} children");
        assert!(children.parts.len() <= 1000 / (PART / 2));
        assert_eq!(**before.get("500").unwrap(), 500);
        assert_eq!(children.into_own().count(), copied + 1);
    }
}
