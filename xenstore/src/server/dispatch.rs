//! Decodes requests and executes them.

use ring_abi::xs_wire::{MessageType, PAYLOAD_MAX, XsError};

use super::access::Perms;
use super::node_ops::{Change, TreeView};
use super::path::{Path, RequestPath};
use super::quota::Quota;
use super::transaction::Dependency;
use super::tree::Node;
use super::watch::Event;
use super::{ConnId, Core};
use crate::permission::Permission;
use crate::wire::{Message, strings};
use ring_abi::DomId;

/// A reply, and for WATCH the event that follows it.
pub(super) struct Reply {
    pub(super) kind: MessageType,
    pub(super) payload: Vec<u8>,
    pub(super) event: Option<Event>,
}

/// One request of one connection.
pub(super) struct Request<'m> {
    pub(super) conn: ConnId,
    pub(super) domid: DomId,
    tx: u32,
    pub(super) payload: &'m [u8],
}

type Outcome = Result<Vec<u8>, XsError>;

impl Core {
    /// Executes a request.
    ///
    /// # Errors
    /// The error to reply with: ENOSYS for an unknown type, EACCES for a request that only dom0 may make, ENOENT for an
    /// unknown transaction, and those of each request.
    pub(super) fn handle(&mut self, conn: ConnId, message: &Message) -> Result<Reply, XsError> {
        let connection = self.connections.get(&conn).ok_or(XsError::EIO)?;
        let kind = message.kind().ok_or(XsError::ENOSYS)?;
        let r =
            Request { conn, domid: connection.domid, tx: message.header.tx_id, payload: &message.payload };
        if r.domid != DomId::DOM0 && privileged(kind, r.payload) {
            return Err(XsError::EACCES);
        }
        // WATCH and UNWATCH ignore the transaction's number.
        let known = r.tx == 0 || connection.transactions.contains_key(&r.tx);
        if !known && !matches!(kind, MessageType::Watch | MessageType::Unwatch) {
            return Err(XsError::ENOENT);
        }
        if kind == MessageType::Watch {
            let event = self.watch(&r)?;
            return Ok(Reply { kind, payload: ok(), event });
        }
        Ok(Reply { kind, payload: self.perform(kind, &r)?, event: None })
    }

    fn perform(&mut self, kind: MessageType, r: &Request<'_>) -> Outcome {
        use MessageType::*;
        match kind {
            Read => self.read(r),
            Directory => self.directory(r),
            DirectoryPart => self.directory_part(r),
            GetPerms => self.get_perms(r),
            Write => self.write(r),
            Mkdir => self.change(r, Change::Mkdir),
            Rm => self.change(r, Change::Rm),
            SetPerms => self.set_perms(r),
            Unwatch => self.unwatch(r),
            ResetWatches => self.reset_watches(r),
            TransactionStart => self.transaction_start(r),
            TransactionEnd => self.transaction_end(r),
            Introduce => self.request_introduce(r),
            Release => self.request_release(r),
            GetDomainPath => self.domain_path(r),
            IsDomainIntroduced => self.is_introduced(r),
            Resume => self.resume(r),
            SetTarget => self.set_target(r),
            GetFeature => self.get_feature(r),
            SetFeature => self.set_feature(r),
            GetQuota => self.get_quota(r),
            SetQuota => self.set_quota(r),
            Control => self.control(r),
            Watch | WatchEvent | Error | Invalid => Err(XsError::ENOSYS),
        }
    }

    fn read(&mut self, r: &Request<'_>) -> Outcome {
        let path = self.path(r, one(r.payload)?, false)?.path;
        self.inspect(r, &path, Dependency::Node, |node| node.value.to_vec())
    }

    fn directory(&mut self, r: &Request<'_>) -> Outcome {
        let path = self.path(r, one(r.payload)?, false)?.path;
        self.inspect(r, &path, Dependency::Children, |node| node.children().flat_map(name_and_nul).collect())
    }

    /// Replies `<generation>|` and as many names from an offset on as fit; an empty name marks the end of the list.
    fn directory_part(&mut self, r: &Request<'_>) -> Outcome {
        let [path, offset] = exactly(r.payload)?;
        let path = self.path(r, path, false)?.path;
        let offset: usize = number(offset)?;
        self.inspect(r, &path, Dependency::Children, |node| {
            let mut reply = format!("{}\0", node.children_changed).into_bytes();
            let mut at = 0;
            for (name, _) in node.children() {
                // The empty name must fit after the last.
                if at >= offset && reply.len() + name.len() + 2 > PAYLOAD_MAX {
                    return reply;
                }
                if at >= offset {
                    reply.extend(name_and_nul((name, ())));
                }
                at += name.len() + 1;
            }
            reply.push(0);
            reply
        })
    }

    fn get_perms(&mut self, r: &Request<'_>) -> Outcome {
        let path = self.path(r, one(r.payload)?, true)?.path;
        let text = |p: &Permission| format!("{p}\0").into_bytes();
        self.inspect(r, &path, Dependency::Node, |node| node.perms.iter().flat_map(text).collect())
    }

    fn write(&mut self, r: &Request<'_>) -> Outcome {
        let at = r.payload.iter().position(|byte| *byte == 0).ok_or(XsError::EINVAL)?;
        let path = self.path(r, &r.payload[..at], false)?.path;
        self.make(r, Change::Write(path, r.payload[at + 1..].to_vec()))
    }

    fn change(&mut self, r: &Request<'_>, change: impl FnOnce(Path) -> Change) -> Outcome {
        let path = self.path(r, one(r.payload)?, false)?.path;
        self.make(r, change(path))
    }

    fn set_perms(&mut self, r: &Request<'_>) -> Outcome {
        let mut strings = strings(r.payload);
        let path = strings.next().ok_or(XsError::EINVAL)?;
        let path = self.path(r, path, true)?.path;
        let entry = |bytes| std::str::from_utf8(bytes).ok()?.parse::<Permission>().ok();
        let perms: Option<Vec<_>> = strings.map(entry).collect();
        let perms: Perms = perms.filter(|p| !p.is_empty()).ok_or(XsError::EINVAL)?.into();
        self.make(r, Change::SetPerms(path, perms))
    }

    fn watch(&mut self, r: &Request<'_>) -> Result<Option<Event>, XsError> {
        let [path, token] = exactly(r.payload)?;
        let request = self.path(r, path, true)?;
        let bytes = request.path.as_str().len() + token.len();
        let connection = self.connections.get_mut(&r.conn).ok_or(XsError::EIO)?;
        let domain = self.domains.get_mut(&r.domid).ok_or(XsError::EIO)?;
        let usage = domain.usage;
        let allowance = &mut domain.allowance;
        if !allowance.allows(Quota::Watches, usage.watches + 1) {
            return Err(XsError::E2BIG);
        }
        if !allowance.allows(Quota::Memory, usage.held + bytes) {
            return Err(XsError::ENOMEM);
        }
        let first = self.watches.add(r.conn, request, token)?;
        connection.watches += 1;
        connection.watch_bytes += bytes;
        Ok(first)
    }

    fn unwatch(&mut self, r: &Request<'_>) -> Outcome {
        let [path, token] = exactly(r.payload)?;
        let path = self.path(r, path, true)?.path;
        self.watches.remove(r.conn, &path, token)?;
        let connection = self.connections.get_mut(&r.conn).ok_or(XsError::EIO)?;
        connection.watches -= 1;
        connection.watch_bytes -= path.as_str().len() + token.len();
        Ok(ok())
    }

    fn reset_watches(&mut self, r: &Request<'_>) -> Outcome {
        self.watches.remove_all(r.conn);
        let connection = self.connections.get_mut(&r.conn).ok_or(XsError::EIO)?;
        connection.watches = 0;
        connection.watch_bytes = 0;
        connection.transactions.clear();
        Ok(ok())
    }

    fn transaction_start(&mut self, r: &Request<'_>) -> Outcome {
        if r.tx != 0 {
            return Err(XsError::EBUSY);
        }
        let connection = self.connections.get_mut(&r.conn).ok_or(XsError::EIO)?;
        let domain = self.domains.get_mut(&r.domid).ok_or(XsError::EIO)?;
        let usage = domain.usage;
        let allowance = &mut domain.allowance;
        match allowance.allows(Quota::Transactions, usage.transactions + 1) {
            true => Ok(text(connection.begin(&self.tree, self.changes))),
            false => Err(XsError::ENOSPC),
        }
    }

    fn transaction_end(&mut self, r: &Request<'_>) -> Outcome {
        let commit = match one(r.payload)? {
            b"T" => true,
            b"F" => false,
            _ => return Err(XsError::EINVAL),
        };
        let credentials = self.credentials(r.domid);
        let connection = self.connections.get_mut(&r.conn).ok_or(XsError::EIO)?;
        let transaction = connection.transactions.remove(&r.tx).ok_or(XsError::ENOENT)?;
        if commit {
            let allowance = &mut self.domains.get_mut(&r.domid).ok_or(XsError::EIO)?.allowance;
            self.work += transaction.touched();
            let effects = transaction.commit(&mut self.tree, &mut self.generation, credentials, allowance)?;
            self.fire(effects);
        }
        Ok(ok())
    }

    /// Applies `take` to a readable node, in the request's transaction if it has one.
    fn inspect<R>(
        &mut self,
        r: &Request<'_>,
        path: &Path,
        dependency: Dependency,
        take: impl FnOnce(&Node) -> R,
    ) -> Result<R, XsError> {
        let credentials = self.credentials(r.domid);
        let connection = self.connections.get_mut(&r.conn).ok_or(XsError::EIO)?;
        let domain = self.domains.get_mut(&r.domid).ok_or(XsError::EIO)?;
        let usage = domain.usage;
        let allowance = &mut domain.allowance;
        let tree = match connection.transactions.get_mut(&r.tx) {
            None => &mut self.tree,
            Some(transaction) => {
                transaction.depend_on(path, dependency, usage.held - transaction.held(), allowance)?;
                &mut transaction.tree
            }
        };
        TreeView { tree, generation: &mut self.generation, credentials, allowance }.read(path).map(take)
    }

    /// Makes a change to the store, or in the request's transaction if it has one.
    fn make(&mut self, r: &Request<'_>, change: Change) -> Outcome {
        let credentials = self.credentials(r.domid);
        let connection = self.connections.get_mut(&r.conn).ok_or(XsError::EIO)?;
        let domain = self.domains.get_mut(&r.domid).ok_or(XsError::EIO)?;
        let usage = domain.usage;
        let allowance = &mut domain.allowance;
        let generation = &mut self.generation;
        let Some(transaction) = connection.transactions.get_mut(&r.tx) else {
            let effect =
                TreeView { tree: &mut self.tree, generation, credentials, allowance }.apply(&change)?;
            self.fire(effect);
            return Ok(ok());
        };
        let others = usage.held - transaction.held();
        transaction.record(&change, others, allowance)?;
        let done =
            TreeView { tree: &mut transaction.tree, generation, credentials, allowance }.apply(&change);
        match done {
            Ok(Some(_)) => transaction.check_memory(others, allowance)?,
            _ => transaction.unrecord(),
        }
        done.map(|_| ok())
    }

    fn path(&self, r: &Request<'_>, bytes: &[u8], special: bool) -> Result<RequestPath, XsError> {
        let longest = if r.domid == DomId::DOM0 { 0 } else { self.quotas_of(r.domid).get(Quota::PathLength) };
        Path::parse(bytes, r.domid, longest, special)
    }
}

/// Whether only dom0 may make a request. Every domain may read the features that it is offered itself.
fn privileged(kind: MessageType, payload: &[u8]) -> bool {
    use MessageType::*;
    match kind {
        Control | Introduce | Release | IsDomainIntroduced | Resume | SetTarget => true,
        SetFeature | GetQuota | SetQuota => true,
        GetFeature => strings(payload).any(|s| !s.is_empty()),
        _ => false,
    }
}

/// The reply of requests that return nothing.
pub(super) fn ok() -> Vec<u8> {
    b"OK\0".to_vec()
}

/// A value as NUL-terminated text.
pub(super) fn text(value: impl std::fmt::Display) -> Vec<u8> {
    format!("{value}\0").into_bytes()
}

/// Parses a payload of one string: its only NUL is its last byte.
pub(super) fn one(payload: &[u8]) -> Result<&[u8], XsError> {
    match payload.iter().position(|byte| *byte == 0) {
        Some(at) if at + 1 == payload.len() => Ok(&payload[..at]),
        _ => Err(XsError::EINVAL),
    }
}

/// Parses a payload of exactly `N` strings.
pub(super) fn exactly<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], XsError> {
    let all: Vec<&[u8]> = strings(payload).collect();
    all.try_into().map_err(|_| XsError::EINVAL)
}

/// Parses a decimal number.
pub(super) fn number<T: std::str::FromStr>(bytes: &[u8]) -> Result<T, XsError> {
    std::str::from_utf8(bytes).ok().and_then(|t| t.parse().ok()).ok_or(XsError::EINVAL)
}

fn name_and_nul<T>((name, _): (&str, T)) -> impl Iterator<Item = u8> {
    name.bytes().chain([0])
}
