//! The operations on nodes, inside and outside a transaction.

use ring_abi::xenbus::value::type_name;
use std::str::FromStr;

use ring_abi::xs_wire::{MessageType, XsError};

use super::error::{Error, Result};
use super::request::{Request, check_string};
use crate::permission::Permission;
use crate::wire;

/// The operations on nodes. A [`Client`](super::Client) makes them at once, a [`Transaction`](super::Transaction) when
/// it commits.
///
/// Every path may be absolute or relative to the domain's home `/local/domain/<domid>`. Every operation fails with
/// [`Error::Store`] where the store replies with an error: ENOENT for a missing node, EACCES where the node's
/// permissions forbid the operation, EINVAL for a malformed path, ENOSPC beyond a quota; and with [`Error::Closed`],
/// [`Error::Io`], [`Error::TimedOut`] and [`Error::Protocol`] where the connection fails.
pub trait Nodes {
    /// Sends one request and returns the payload of its reply. `path` is for the texts of errors.
    fn request(&mut self, kind: MessageType, path: &str, payload: &[u8]) -> Result<Vec<u8>>;

    /// Sends several requests, and returns the payloads of their replies in the same order. They are carried out in this order,
    /// whether or not one fails, and several are sent before the first reply has come: a thread that waits for each reply sleeps
    /// as often as there are requests.
    ///
    /// # Errors
    /// The connection's. Errors that the store replies with are in the list.
    fn request_each(&mut self, requests: &[Request]) -> Result<Vec<Result<Vec<u8>>>>;

    /// Makes several changes, whose replies say nothing.
    ///
    /// # Errors
    /// The first one's; the others may have been made.
    fn change_each(&mut self, requests: &[Request]) -> Result<()> {
        self.request_each(requests)?.into_iter().try_for_each(|reply| reply.map(drop))
    }

    /// Reads the values of several nodes, as [`Nodes::read`] does each.
    ///
    /// # Errors
    /// The connection's. Errors that the store replies with are in the list, such as ENOENT for a missing node.
    fn read_each(&mut self, paths: &[String]) -> Result<Vec<Result<Vec<u8>>>> {
        let requests = paths.iter().map(|path| Request::read(path)).collect::<Result<Vec<_>>>()?;
        self.request_each(&requests)
    }

    /// Reads the values of several nodes, as [`Nodes::read_each`], and lists another one's children after them, as
    /// [`Nodes::directory`].
    ///
    /// # Errors
    /// The connection's. Errors that the store replies with are in the results.
    #[allow(clippy::type_complexity)] // A reply for each request.
    fn read_each_and_directory(
        &mut self,
        paths: &[String],
        directory: &str,
    ) -> Result<(Vec<Result<Vec<u8>>>, Result<Vec<String>>)> {
        let reads = paths.iter().map(|path| Request::read(path));
        let requests = reads.chain([Request::directory(directory)]).collect::<Result<Vec<_>>>()?;
        let mut replies = self.request_each(&requests)?;
        let names = match replies.pop() {
            Some(Ok(payload)) => Ok(texts(&payload)),
            // Not in one message.
            Some(Err(e)) if e.store_error() != Some(XsError::E2BIG) => Err(e),
            _ => self.directory(directory),
        };
        Ok((replies, names))
    }

    /// Writes the values of several nodes, as [`Nodes::write`] does each.
    ///
    /// # Errors
    /// The first one's; the others may have been written.
    fn write_each<'n>(&mut self, values: impl IntoIterator<Item = (String, &'n str)>) -> Result<()> {
        let request = |(path, value): (String, &str)| Request::write(&path, value);
        let requests = values.into_iter().map(request).collect::<Result<Vec<_>>>()?;
        self.change_each(&requests)
    }

    /// Reads a node's value.
    ///
    /// # Errors
    /// ENOENT when the node is missing.
    fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        self.request(MessageType::Read, path, &with_nul(MessageType::Read, path)?)
    }

    /// Reads a node's value; `None` when the node is missing.
    fn read_opt(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        match self.read(path) {
            Err(e) if e.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Reads a node's value as text; bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// ENOENT when the node is missing.
    fn read_text(&mut self, path: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.read(path)?).into_owned())
    }

    /// Reads a node's value and parses it.
    ///
    /// # Errors
    /// [`Error::Value`] when the value cannot be parsed, ENOENT when the node is missing.
    fn read_as<T: FromStr>(&mut self, path: &str) -> Result<T> {
        parse(path, &self.read(path)?)
    }

    /// Reads a node's value and parses it; `None` when the node is missing.
    ///
    /// # Errors
    /// [`Error::Value`] when the value cannot be parsed.
    fn read_opt_as<T: FromStr>(&mut self, path: &str) -> Result<Option<T>> {
        self.read_opt(path)?.map(|bytes| parse(path, &bytes)).transpose()
    }

    /// Whether a node exists.
    fn exists(&mut self, path: &str) -> Result<bool> {
        Ok(self.read_opt(path)?.is_some())
    }

    /// Writes a node's value; the node and its parents are created where missing.
    fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<()> {
        let mut payload = with_nul(MessageType::Write, path)?;
        payload.extend_from_slice(value.as_ref());
        self.request(MessageType::Write, path, &payload).map(|_| ())
    }

    /// Creates a node and its parents where missing.
    fn mkdir(&mut self, path: &str) -> Result<()> {
        self.request(MessageType::Mkdir, path, &with_nul(MessageType::Mkdir, path)?).map(|_| ())
    }

    /// Removes a node and all below it. A missing node is no error as long as its parent exists.
    ///
    /// # Errors
    /// ENOENT when the parent is missing too, EINVAL for `/`.
    fn rm(&mut self, path: &str) -> Result<()> {
        self.request(MessageType::Rm, path, &with_nul(MessageType::Rm, path)?).map(|_| ())
    }

    /// Lists the names of a node's children, in the store's order. A list that does not fit one message is read in
    /// parts, and from the start again if it changes meanwhile.
    ///
    /// # Errors
    /// ENOENT when the node is missing.
    fn directory(&mut self, path: &str) -> Result<Vec<String>> {
        match self.request(MessageType::Directory, path, &with_nul(MessageType::Directory, path)?) {
            Ok(payload) => Ok(texts(&payload)),
            Err(e) if e.store_error() == Some(XsError::E2BIG) => directory_in_parts(self, path),
            Err(e) => Err(e),
        }
    }

    /// Reads a node's permissions: the owner's entry first, then those of single domains.
    ///
    /// # Errors
    /// ENOENT when the node is missing.
    fn get_perms(&mut self, path: &str) -> Result<Vec<Permission>> {
        let payload = self.request(MessageType::GetPerms, path, &with_nul(MessageType::GetPerms, path)?)?;
        texts(&payload)
            .iter()
            .map(|t| t.parse().map_err(|_| Error::value(path, t, "a permission such as n0 or r1")))
            .collect()
    }

    /// Sets a node's permissions: the owner's entry first (with the access of all domains not listed), then those of
    /// single domains.
    ///
    /// # Errors
    /// EACCES for a domain that is not the owner, EPERM when a guest names another owner, ENOSPC for too many entries.
    fn set_perms(&mut self, path: &str, permissions: &[Permission]) -> Result<()> {
        let Request { kind, payload, .. } = Request::set_perms(path, permissions)?;
        self.request(kind, path, &payload).map(|_| ())
    }
}

/// Lists children by DIRECTORY_PART requests from offset 0 on, until a part ends with an empty name.
fn directory_in_parts<N: Nodes + ?Sized>(nodes: &mut N, path: &str) -> Result<Vec<String>> {
    /// A list that has changed during this many passes keeps changing.
    const ATTEMPTS: u32 = 64;
    for _ in 0..ATTEMPTS {
        if let Some(names) = one_pass(nodes, path)? {
            return Ok(names);
        }
    }
    Err(Error::Conflict { attempts: ATTEMPTS })
}

/// Reads all parts; `None` when the node's generation changed between two of them.
fn one_pass<N: Nodes + ?Sized>(nodes: &mut N, path: &str) -> Result<Option<Vec<String>>> {
    let mut names = Vec::new();
    let mut generation = None;
    let mut offset = 0;
    loop {
        let mut payload = with_nul(MessageType::DirectoryPart, path)?;
        payload.extend_from_slice(format!("{offset}\0").as_bytes());
        let reply = nodes.request(MessageType::DirectoryPart, path, &payload)?;
        let mut part = texts(&reply).into_iter();
        let now = part.next();
        if now.is_none() || generation.is_some() && generation != now {
            return Ok(None);
        }
        generation = now;
        let before = offset;
        for name in part {
            if name.is_empty() {
                return Ok(Some(names));
            }
            offset += name.len() + 1;
            names.push(name);
        }
        if offset == before {
            return Err(Error::Protocol(format!("an empty part of directory {path:?}")));
        }
    }
}

fn with_nul(kind: MessageType, path: &str) -> Result<Vec<u8>> {
    check_string(kind, path)?;
    Ok([path.as_bytes(), b"\0"].concat())
}

fn texts(payload: &[u8]) -> Vec<String> {
    wire::strings(payload).map(|s| String::from_utf8_lossy(s).into_owned()).collect()
}

fn parse<T: FromStr>(path: &str, bytes: &[u8]) -> Result<T> {
    let text = String::from_utf8_lossy(bytes);
    text.trim_ascii().parse().map_err(|_| Error::value(path, &text, type_name::<T>()))
}
