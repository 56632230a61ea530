// Not a core: does I/O or calls a hypervisor.

//! A blocking client of the store, over a socket or a device node.
//!
//! A call sends a request, or several of [`Nodes::request_each`], and returns with the replies. Watch events that arrive in between
//! are queued; [`Client::poll_event`] and [`Client::wait_event`] return them.
//!
//! A `Client` belongs to one thread at a time (it is `Send`, its methods take `&mut self`). Threads that share one put
//! it into an `Arc<Mutex<Client>>` and sleep on [`Client::fd`], not in `wait_event`, so that the lock is not held
//! meanwhile; or each opens a connection of its own, as transactions and watches belong to a connection.

mod connection;
mod error;
mod event;
mod nodes;
mod request;
mod transaction;

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use event_loop::{Connector, Stream};
use ring_abi::DomId;
use ring_abi::xs_wire::MessageType;

pub use crate::permission::{Access, Permission};
use connection::Connection;
pub use error::{Error, Result};
pub use event::WatchEvent;
pub use nodes::Nodes;
pub use request::Request;
pub use transaction::Transaction;

/// A connection to the store. The operations of [`Nodes`] made on it are outside any transaction.
///
/// ```
/// use std::time::Duration;
/// use xenstore::Nodes;
/// use xenstore::server::{Config, Store};
///
/// let store = Store::spawn(Config::default())?;
/// let mut client = store.client()?;
/// client.watch("/counter", "token")?;
/// assert_eq!(client.wait_event(None)?.unwrap().path, "/counter");
///
/// client.transaction(|tx| {
///     let n: u32 = tx.read_opt_as("/counter")?.unwrap_or(0);
///     tx.write("/counter", (n + 1).to_string())
/// })?;
/// assert_eq!(client.wait_event(Some(Duration::from_secs(5)))?.unwrap().token, "token");
/// assert_eq!(client.read("/counter")?, b"1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Makes a client over an open stream, e.g. `/dev/xen/xenbus`.
    pub fn new(stream: impl Stream + 'static) -> Client {
        Client { connection: Connection::new(Box::new(stream)) }
    }

    /// Connects to the store that a connector leads to.
    ///
    /// # Errors
    /// [`Error::Io`] where the connector fails.
    pub fn connect(store: &(impl Connector + ?Sized)) -> Result<Client> {
        Ok(Client::new(store.connect()?))
    }

    /// Connects to a store's socket, e.g. `/run/xenstored/socket`.
    ///
    /// # Errors
    /// [`Error::Io`] when no process listens there.
    pub fn open_unix(path: impl AsRef<Path>) -> Result<Client> {
        Ok(Client::new(UnixStream::connect(path)?))
    }

    /// Sets how long a reply may take before a call fails with [`Error::TimedOut`]; `None`, the default, is without
    /// limit. The connection stays usable after a timeout: the late reply is dropped.
    pub fn set_reply_timeout(&mut self, timeout: Option<Duration>) {
        self.connection.reply_timeout = timeout;
    }

    /// The descriptor to poll for watch events. Before sleeping on it call [`Client::poll_event`] until it returns
    /// `None`: events may have been read together with a reply.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.connection.fd()
    }

    /// The next watch event, without waiting.
    ///
    /// # Errors
    /// [`Error::EventsLost`] once after more events came than are queued: what the watches with its tokens watch may have changed.
    /// [`Error::Closed`] and [`Error::Io`] when the connection is closed.
    pub fn poll_event(&mut self) -> Result<Option<WatchEvent>> {
        self.connection.event(Some(Instant::now()))
    }

    /// The next watch event, waiting for it up to `timeout` (`None`: without limit). `Ok(None)` when the time is up.
    ///
    /// # Errors
    /// Those of [`Client::poll_event`].
    pub fn wait_event(&mut self, timeout: Option<Duration>) -> Result<Option<WatchEvent>> {
        self.connection.event(timeout.map(|t| Instant::now() + t))
    }

    /// Sets a watch on `path` and all nodes below it; a first event comes at once. `path` may be relative to the
    /// domain's home, and events' paths then are too; `@introduceDomain` and `@releaseDomain` are special.
    ///
    /// # Errors
    /// EEXIST when this path is already watched with this token, E2BIG beyond the quota of watches.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<()> {
        self.ack(MessageType::Watch, path, &[path, token])
    }

    /// Removes a watch, and drops its queued events.
    ///
    /// # Errors
    /// ENOENT when there is no such watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<()> {
        self.ack(MessageType::Unwatch, path, &[path, token])?;
        self.connection.forget(path, token);
        Ok(())
    }

    /// Drops every watch and transaction of this connection, and the queued events.
    pub fn reset_watches(&mut self) -> Result<()> {
        self.ack(MessageType::ResetWatches, "", &[""])?;
        self.connection.forget_all();
        Ok(())
    }

    /// A domain's home in the store, `/local/domain/<domid>`.
    pub fn get_domain_path(&mut self, domid: DomId) -> Result<String> {
        self.text(MessageType::GetDomainPath, &[&domid.to_string()])
    }

    /// Introduces a domain to the store, with the frame of its ring page and its event channel's port.
    ///
    /// # Errors
    /// EACCES for a domain other than dom0.
    pub fn introduce(&mut self, domid: DomId, frame: u64, port: u32) -> Result<()> {
        let args = [domid.to_string(), frame.to_string(), port.to_string()];
        self.ack(MessageType::Introduce, "", &[&args[0], &args[1], &args[2]])
    }

    /// Makes the store release a domain; `@releaseDomain` fires.
    ///
    /// # Errors
    /// ENOENT when it was not introduced, EACCES for a domain other than dom0.
    pub fn release(&mut self, domid: DomId) -> Result<()> {
        self.ack(MessageType::Release, "", &[&domid.to_string()])
    }

    /// Whether a domain is introduced.
    ///
    /// # Errors
    /// EACCES for a domain other than dom0.
    pub fn is_introduced(&mut self, domid: DomId) -> Result<bool> {
        Ok(self.text(MessageType::IsDomainIntroduced, &[&domid.to_string()])? == "T")
    }

    /// Gives `domid` the access rights of `target` (a device model's those of its guest).
    ///
    /// # Errors
    /// ENOENT when either was not introduced, EACCES for a domain other than dom0.
    pub fn set_target(&mut self, domid: DomId, target: DomId) -> Result<()> {
        self.ack(MessageType::SetTarget, "", &[&domid.to_string(), &target.to_string()])
    }

    /// Sends a control command with its arguments, e.g. `["quota"]`; the reply is text for people.
    ///
    /// # Errors
    /// EINVAL for a command that the store does not have, EACCES for a domain other than dom0.
    pub fn control(&mut self, command: &[&str]) -> Result<String> {
        self.text(MessageType::Control, command)
    }

    /// The store's feature bits ([`ring_abi::xs_wire::ring_page::feature`]) for a domain, or for this connection.
    ///
    /// # Errors
    /// ENOSYS from a store older than Xen 4.21.
    pub fn get_feature(&mut self, domid: Option<DomId>) -> Result<u32> {
        let domid = domid.map(|d| d.to_string());
        self.number(MessageType::GetFeature, &domid.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Sets the features offered to a domain that is not yet introduced.
    ///
    /// # Errors
    /// EINVAL for bits that the store does not have, EBUSY once the domain is introduced, ENOSYS from an older store.
    pub fn set_feature(&mut self, domid: DomId, features: u32) -> Result<()> {
        self.ack(MessageType::SetFeature, "", &[&domid.to_string(), &features.to_string()])
    }

    /// The names of the store's quotas.
    ///
    /// # Errors
    /// ENOSYS from a store older than Xen 4.21.
    pub fn quota_names(&mut self) -> Result<Vec<String>> {
        let names = self.text(MessageType::GetQuota, &[])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// A domain's quota, or (`None`) the quota of new domains; 0 is no limit.
    ///
    /// # Errors
    /// EINVAL for an unknown name, ENOENT for an unknown domain.
    pub fn get_quota(&mut self, domid: Option<DomId>, name: &str) -> Result<u32> {
        let domid = domid.map(|d| d.to_string());
        let args: Vec<&str> = domid.as_deref().into_iter().chain([name]).collect();
        self.number(MessageType::GetQuota, &args)
    }

    /// Sets a domain's quota, or (`None`) the quota of new domains; 0 is no limit.
    ///
    /// # Errors
    /// EINVAL for an unknown name or a reserved domain's number.
    pub fn set_quota(&mut self, domid: Option<DomId>, name: &str, value: u32) -> Result<()> {
        let domid = domid.map(|d| d.to_string());
        let value = value.to_string();
        let args: Vec<&str> = domid.as_deref().into_iter().chain([name, value.as_str()]).collect();
        self.ack(MessageType::SetQuota, "", &args)
    }

    /// Runs `body` in a transaction and commits it; repeats both while the commit conflicts with another client's
    /// write.
    ///
    /// `body` may therefore run several times; it sees the store as it was when the attempt began (or the commit fails
    /// with EAGAIN). An error of `body` other than EAGAIN drops the transaction and is returned.
    ///
    /// # Errors
    /// [`Error::Conflict`] after [`Transaction::ATTEMPTS`] attempts.
    pub fn transaction<R>(&mut self, body: impl FnMut(&mut Transaction<'_>) -> Result<R>) -> Result<R> {
        transaction::run(self, Transaction::ATTEMPTS, body)
    }

    /// As [`Client::transaction`], but with at most so many attempts: for nodes that an untrusted client may write as
    /// often as it likes.
    ///
    /// # Errors
    /// [`Error::Conflict`] after `attempts` attempts.
    pub fn transaction_within<R>(
        &mut self,
        attempts: u32,
        body: impl FnMut(&mut Transaction<'_>) -> Result<R>,
    ) -> Result<R> {
        transaction::run(self, attempts, body)
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

    fn request_each(&mut self, requests: &[Request]) -> Result<Vec<Result<Vec<u8>>>> {
        self.connection.request_each(0, requests)
    }
}
