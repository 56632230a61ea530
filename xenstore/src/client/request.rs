//! A request for one node, to be sent together with others.

use ring_abi::xs_wire::MessageType;

use super::error::{Error, Result};
use crate::permission::Permission;

/// A request for one node, for [`Nodes::request_each`](super::Nodes::request_each). Each constructor makes the request of the
/// operation of its name in [`Nodes`](super::Nodes), and fails with [`Error::Request`](super::Error::Request) for a path with a
/// NUL inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub(super) kind: MessageType,
    /// For the texts of errors.
    pub(super) path: String,
    pub(super) payload: Vec<u8>,
}

impl Request {
    fn new(kind: MessageType, path: &str, rest: &[u8]) -> Result<Request> {
        check_string(kind, path)?;
        Ok(Request { kind, path: path.to_owned(), payload: [path.as_bytes(), b"\0", rest].concat() })
    }

    /// Reads a node's value.
    ///
    /// # Errors
    /// A NUL inside the path.
    pub fn read(path: &str) -> Result<Request> {
        Request::new(MessageType::Read, path, b"")
    }

    /// Lists the names of a node's children: E2BIG where they do not fit one message.
    ///
    /// # Errors
    /// A NUL inside the path.
    pub fn directory(path: &str) -> Result<Request> {
        Request::new(MessageType::Directory, path, b"")
    }

    /// Writes a node's value.
    ///
    /// # Errors
    /// A NUL inside the path.
    pub fn write(path: &str, value: impl AsRef<[u8]>) -> Result<Request> {
        Request::new(MessageType::Write, path, value.as_ref())
    }

    /// Creates a node and its parents where missing.
    ///
    /// # Errors
    /// A NUL inside the path.
    pub fn mkdir(path: &str) -> Result<Request> {
        Request::new(MessageType::Mkdir, path, b"")
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// A NUL inside the path.
    pub fn rm(path: &str) -> Result<Request> {
        Request::new(MessageType::Rm, path, b"")
    }

    /// Sets a node's permissions.
    ///
    /// # Errors
    /// A NUL inside the path.
    pub fn set_perms(path: &str, permissions: &[Permission]) -> Result<Request> {
        let entries: Vec<u8> = permissions.iter().flat_map(|p| format!("{p}\0").into_bytes()).collect();
        Request::new(MessageType::SetPerms, path, &entries)
    }
}

/// Refuses a string with a NUL inside, which would become two strings in the request.
pub(super) fn check_string(kind: MessageType, string: &str) -> Result<()> {
    match string.contains('\0') {
        true => Err(Error::Request { kind, path: string.into(), what: "a NUL inside a string" }),
        false => Ok(()),
    }
}
