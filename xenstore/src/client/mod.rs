//! A blocking client of the store, over a socket or a device node.
//!
//! One request is in flight at a time: a call sends it and returns with its reply. Watch events that arrive in
//! between are queued and given out by [`Client::poll_event`] and [`Client::wait_event`].
//!
//! A `Client` belongs to one thread at a time (it is `Send`, its methods take `&mut self`). Threads that want to
//! share one put it in an `Arc<Mutex<Client>>` and then sleep on [`Client::fd`], not in `wait_event`, so that the
//! lock stays free; or each opens a connection of its own, as transactions and watches belong to a connection.

mod connection;
mod error;
mod event;
mod nodes;
mod transaction;

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ring_abi::xs_wire::MessageType;

use crate::DomId;
pub use crate::permission::{Access, Permission};
use connection::Connection;
pub use error::{Error, Result};
pub use event::WatchEvent;
pub use nodes::Nodes;
pub use transaction::Transaction;

/// What a client speaks over: a socket, `/dev/xen/xenbus`, or a box of either.
pub trait Stream: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send + ?Sized> Stream for T {}

/// A connection to the store. Node operations ([`Nodes`]) made on it directly are outside any transaction.
pub struct Client {
    connection: Connection,
}

impl Client {
    /// A client over an open stream, e.g. the one a hypervisor's `store()` gives.
    pub fn new(stream: impl Stream + 'static) -> Client {
        Client { connection: Connection::new(Box::new(stream)) }
    }

    /// Connects to a store's socket, e.g. `/run/xenstored/socket`.
    ///
    /// # Errors
    /// [`Error::Io`] when nobody listens there.
    pub fn open_unix(path: impl AsRef<Path>) -> Result<Client> {
        Ok(Client::new(UnixStream::connect(path)?))
    }

    /// How long a reply may take before a call fails with [`Error::TimedOut`]; `None`, the default, is for ever.
    /// After a time-out the connection stays usable: the late reply is thrown away.
    pub fn set_reply_timeout(&mut self, timeout: Option<Duration>) {
        self.connection.reply_timeout = timeout;
    }

    /// The descriptor to poll for watch events. Before sleeping on it call [`Client::poll_event`] until it gives
    /// `None`: events may already have been read together with a reply.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.connection.fd()
    }

    /// The next watch event that is there, without waiting.
    ///
    /// # Errors
    /// [`Error::EventsLost`] once after more events came than are queued: look at everything that is watched.
    /// [`Error::Closed`] and [`Error::Io`] when the store is gone.
    pub fn poll_event(&mut self) -> Result<Option<WatchEvent>> {
        self.connection.event(Some(Instant::now()))
    }

    /// The next watch event, waiting for it up to `timeout` (`None` is for ever). `Ok(None)` is the time-out.
    ///
    /// # Errors
    /// As [`Client::poll_event`].
    pub fn wait_event(&mut self, timeout: Option<Duration>) -> Result<Option<WatchEvent>> {
        self.connection.event(timeout.map(|t| Instant::now() + t))
    }

    /// Asks for an event at `path` and below it; a first one comes at once. `path` may be relative to the
    /// domain's home, and events then are too; `@introduceDomain` and `@releaseDomain` are special.
    ///
    /// # Errors
    /// EEXIST when this path is watched with this token already, E2BIG when there are too many watches.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<()> {
        self.ack(MessageType::Watch, path, &[path, token])
    }

    /// Takes a watch back. Events of it that are queued here are dropped.
    ///
    /// # Errors
    /// ENOENT when there is no such watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<()> {
        self.ack(MessageType::Unwatch, path, &[path, token])?;
        self.connection.forget(path, token);
        Ok(())
    }

    /// Drops every watch and transaction of this connection, and the events queued here.
    ///
    /// # Errors
    /// As any request.
    pub fn reset_watches(&mut self) -> Result<()> {
        self.ack(MessageType::ResetWatches, "", &[""])?;
        self.connection.forget_all();
        Ok(())
    }

    /// `/local/domain/<domid>`, as the store says it.
    ///
    /// # Errors
    /// As any request.
    pub fn get_domain_path(&mut self, domid: DomId) -> Result<String> {
        self.text(MessageType::GetDomainPath, &[&domid.to_string()])
    }

    /// Tells the store to serve a domain: the frame of its ring page and its event channel's port.
    ///
    /// # Errors
    /// EACCES for anybody but dom0.
    pub fn introduce(&mut self, domid: DomId, frame: u64, port: u32) -> Result<()> {
        let args = [domid.to_string(), frame.to_string(), port.to_string()];
        self.ack(MessageType::Introduce, "", &[&args[0], &args[1], &args[2]])
    }

    /// Tells the store to serve a domain no longer; `@releaseDomain` fires.
    ///
    /// # Errors
    /// ENOENT when it was not introduced, EACCES for anybody but dom0.
    pub fn release(&mut self, domid: DomId) -> Result<()> {
        self.ack(MessageType::Release, "", &[&domid.to_string()])
    }

    /// Whether the store serves this domain.
    ///
    /// # Errors
    /// EACCES for anybody but dom0.
    pub fn is_introduced(&mut self, domid: DomId) -> Result<bool> {
        Ok(self.text(MessageType::IsDomainIntroduced, &[&domid.to_string()])? == "T")
    }

    /// Lets `domid` act for `target` (a device model for its guest).
    ///
    /// # Errors
    /// ENOENT when either was not introduced, EACCES for anybody but dom0.
    pub fn set_target(&mut self, domid: DomId, target: DomId) -> Result<()> {
        self.ack(MessageType::SetTarget, "", &[&domid.to_string(), &target.to_string()])
    }

    /// A control command and its arguments, e.g. `["quota"]`; the answer is for people.
    ///
    /// # Errors
    /// EINVAL for a command the store does not have, EACCES for anybody but dom0.
    pub fn control(&mut self, command: &[&str]) -> Result<String> {
        self.text(MessageType::Control, command)
    }

    /// The store's feature bits ([`ring_abi::xs_wire::ring_page::feature`]): a domain's, or those for this
    /// connection.
    ///
    /// # Errors
    /// ENOSYS from a store older than Xen 4.21.
    pub fn get_feature(&mut self, domid: Option<DomId>) -> Result<u32> {
        let domid = domid.map(|d| d.to_string());
        self.number(MessageType::GetFeature, &domid.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Chooses the features a domain will see; only before it is introduced.
    ///
    /// # Errors
    /// EINVAL for bits the store does not have, EBUSY once introduced, ENOSYS from an older store.
    pub fn set_feature(&mut self, domid: DomId, features: u32) -> Result<()> {
        self.ack(MessageType::SetFeature, "", &[&domid.to_string(), &features.to_string()])
    }

    /// The names of the quotas the store knows.
    ///
    /// # Errors
    /// ENOSYS from a store older than Xen 4.21.
    pub fn quota_names(&mut self) -> Result<Vec<String>> {
        let names = self.text(MessageType::GetQuota, &[])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// A quota's value, a domain's or (`None`) the one new domains get; 0 is no limit.
    ///
    /// # Errors
    /// EINVAL for a name the store does not know, ENOENT for an unknown domain.
    pub fn get_quota(&mut self, domid: Option<DomId>, name: &str) -> Result<u32> {
        let domid = domid.map(|d| d.to_string());
        let args: Vec<&str> = domid.as_deref().into_iter().chain([name]).collect();
        self.number(MessageType::GetQuota, &args)
    }

    /// Sets a quota, a domain's or (`None`) the one new domains get; 0 is no limit.
    ///
    /// # Errors
    /// As [`Client::get_quota`].
    pub fn set_quota(&mut self, domid: Option<DomId>, name: &str, value: u32) -> Result<()> {
        let (domid, value) = (domid.map(|d| d.to_string()), value.to_string());
        let args: Vec<&str> = domid.as_deref().into_iter().chain([name, value.as_str()]).collect();
        self.ack(MessageType::SetQuota, "", &args)
    }

    /// Runs `body` in a transaction and commits it, again when somebody else's write came in between.
    ///
    /// `body` may therefore run several times; it sees the store as it was when the attempt began (or fails with
    /// EAGAIN at the end). An error of `body` other than EAGAIN drops the transaction and is returned.
    ///
    /// # Errors
    /// [`Error::Conflict`] after [`Transaction::ATTEMPTS`] attempts.
    pub fn transaction<R>(&mut self, body: impl FnMut(&mut Transaction<'_>) -> Result<R>) -> Result<R> {
        transaction::run(self, body)
    }

    fn ack(&mut self, kind: MessageType, path: &str, strings: &[&str]) -> Result<()> {
        self.connection.strings(kind, path, strings).map(|_| ())
    }

    fn text(&mut self, kind: MessageType, strings: &[&str]) -> Result<String> {
        let mut reply = self.connection.strings(kind, strings.first().unwrap_or(&""), strings)?;
        while reply.last() == Some(&0) {
            reply.pop();
        }
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }

    fn number(&mut self, kind: MessageType, strings: &[&str]) -> Result<u32> {
        let text = self.text(kind, strings)?;
        text.parse().map_err(|_| Error::value(strings.join(" "), &text, "u32"))
    }
}

impl Nodes for Client {
    fn request(&mut self, kind: MessageType, path: &str, payload: &[u8]) -> Result<Vec<u8>> {
        self.connection.request(kind, 0, path, payload)
    }
}
