//! A simple model of the store: every node is in one map, and a transaction is a copy of it.

use std::collections::BTreeMap;

use xenstore::{Access, DomId, Permission, XsError};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    value: Vec<u8>,
    perms: Vec<Permission>,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Read(String),
    Directory(String),
    GetPerms(String),
    Write(String, u8),
    Mkdir(String),
    Rm(String),
    SetPerms(String, Vec<Permission>),
}

/// A change that was made: its node, the permissions that decide who gets an event, and the model before a removal.
pub(crate) struct Changed {
    pub(crate) path: String,
    pub(crate) lists: Vec<Vec<Permission>>,
    pub(crate) removed: Option<Model>,
}

type Outcome = Result<(Vec<u8>, Option<Changed>), XsError>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model {
    nodes: BTreeMap<String, Node>,
}

impl Model {
    pub(crate) fn new() -> Model {
        let perms = vec![Permission::new(DomId(0), Access::None)];
        let node = Node { value: vec![], perms };
        let paths = ["/", "/tool", "/tool/xenstored"];
        Model { nodes: paths.into_iter().map(|p| (p.to_owned(), node.clone())).collect() }
    }

    pub(crate) fn apply(&mut self, domid: DomId, op: &Op) -> Outcome {
        match op {
            Op::Read(path) => Ok((self.allowed(domid, path, Access::reads)?.value.clone(), None)),
            Op::Directory(path) => {
                self.allowed(domid, path, Access::reads)?;
                let names = self.children(path);
                Ok((names.into_iter().flat_map(|c| [c.as_bytes(), b"\0"].concat()).collect(), None))
            }
            Op::GetPerms(path) => {
                let perms = &self.allowed(domid, path, Access::reads)?.perms;
                Ok((perms.iter().flat_map(|p| format!("{p}\0").into_bytes()).collect(), None))
            }
            Op::Write(path, value) => {
                self.make(domid, path)?;
                self.nodes.get_mut(path).unwrap().value = vec![*value];
                Ok((b"OK\0".to_vec(), Some(self.changed(path, None))))
            }
            Op::Mkdir(path) => {
                let made = self.make(domid, path)?;
                Ok((b"OK\0".to_vec(), made.then(|| self.changed(path, None))))
            }
            Op::Rm(path) => self.rm(domid, path),
            Op::SetPerms(path, perms) => self.set_perms(domid, path, perms),
        }
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    pub(crate) fn lists(&self, path: &str) -> Vec<Vec<Permission>> {
        [path, parent(path)].iter().filter_map(|p| self.nodes.get(*p)).map(|n| n.perms.clone()).collect()
    }

    fn rm(&mut self, domid: DomId, path: &str) -> Outcome {
        match self.allowed(domid, path, Access::writes) {
            Err(XsError::ENOENT) if self.exists(parent(path)) => return Ok((b"OK\0".to_vec(), None)),
            other => other?,
        };
        if path == "/" {
            return Err(XsError::EINVAL);
        }
        let mut changed = self.changed(path, None);
        changed.removed = Some(self.clone());
        self.nodes.retain(|p, _| p != path && !p.starts_with(&format!("{path}/")));
        Ok((b"OK\0".to_vec(), Some(changed)))
    }

    fn set_perms(&mut self, domid: DomId, path: &str, perms: &[Permission]) -> Outcome {
        match self.nodes.get(path) {
            None => drop(self.allowed(domid, path, Access::writes)?),
            Some(node) if domid != DomId::DOM0 && node.perms[0].domid != domid => {
                return Err(XsError::EACCES);
            }
            Some(node) if domid != DomId::DOM0 && node.perms[0].domid != perms[0].domid => {
                return Err(XsError::EPERM);
            }
            Some(_) => {}
        }
        let before = std::mem::replace(&mut self.nodes.get_mut(path).unwrap().perms, perms.to_vec());
        Ok((b"OK\0".to_vec(), Some(self.changed(path, Some(before)))))
    }

    /// Creates the missing nodes of a path; `true` if there were any.
    fn make(&mut self, domid: DomId, path: &str) -> Result<bool, XsError> {
        match self.allowed(domid, path, Access::writes) {
            Ok(_) => return Ok(false),
            Err(XsError::ENOENT) => {}
            Err(e) => return Err(e),
        }
        let mut perms = self.nodes[self.nearest(path)].perms.clone();
        if domid != DomId::DOM0 {
            perms[0].domid = domid;
        }
        let mut at = path;
        while !self.exists(at) {
            self.nodes.insert(at.to_owned(), Node { value: vec![], perms: perms.clone() });
            at = parent(at);
        }
        Ok(true)
    }

    fn allowed(&self, domid: DomId, path: &str, may: fn(Access) -> bool) -> Result<&Node, XsError> {
        let nearest = &self.nodes[self.nearest(path)];
        match may(access(domid, &nearest.perms)) {
            false => Err(XsError::EACCES),
            true => self.nodes.get(path).ok_or(XsError::ENOENT),
        }
    }

    fn nearest<'p>(&self, mut path: &'p str) -> &'p str {
        while !self.exists(path) {
            path = parent(path);
        }
        path
    }

    fn children(&self, path: &str) -> Vec<&str> {
        let below = self.nodes.keys().filter(|p| p.as_str() != "/" && parent(p) == path);
        below.map(|p| p.rsplit('/').next().unwrap()).collect()
    }

    fn changed(&self, path: &str, before: Option<Vec<Permission>>) -> Changed {
        let lists = self.lists(path).into_iter().chain(before).collect();
        Changed { path: path.to_owned(), lists, removed: None }
    }
}

pub(crate) fn access(domid: DomId, perms: &[Permission]) -> Access {
    if domid == DomId::DOM0 || perms[0].domid == domid {
        return Access::Both;
    }
    perms[1..].iter().find(|p| p.domid == domid).unwrap_or(&perms[0]).access
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(at) if at > 0 => &path[..at],
        _ => "/",
    }
}
