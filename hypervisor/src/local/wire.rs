//! The broker's protocol: requests and replies, each a message of bounded length in one packet.
//!
//! A message is twelve bytes, little-endian - kind `u8`, detail `u8`, and numbers `u16`, `u32`, `u32` - and then,
//! for some kinds, a text. Descriptors are sent with it as SCM_RIGHTS.

use super::token::Token;
use ring_abi::{DomId, EventPort};

/// The protocol's version, in the first message of a connection.
pub(super) const VERSION: u8 = 2;
/// Bytes of the longest message.
pub const MAX_MESSAGE: usize = HEAD + MAX_TEXT;
/// Bytes of the longest text.
pub(super) const MAX_TEXT: usize = 200;
/// Bytes of the longest name of a domain.
pub(super) const MAX_NAME: usize = 64;

/// Bytes of a message without its text.
const HEAD: usize = 12;
/// The number that means "no domain" where a domain is optional; reserved in Xen too.
const NO_DOMAIN: u16 = u16::MAX;

/// A client's request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// First message: join as this domain.
    Join(DomId),
    /// First message: become a controller, which may create, destroy, list and wait for domains.
    Control,
    /// Offers an arena, sent as a descriptor, to `peer`.
    Offer {
        /// The domain that may map it.
        peer: DomId,
        /// Its size in pages.
        pages: u32,
    },
    /// Requests the arena that this domain offers to the client.
    Fetch(DomId),
    /// Allocates a port to which this domain may bind.
    AllocUnbound(DomId),
    /// Binds to a peer's port.
    BindInterdomain {
        /// The peer.
        peer: DomId,
        /// The peer's port.
        port: EventPort,
    },
    /// Frees a port of the client; there is no reply.
    Close(EventPort),
    /// Opens a connection to the store.
    Store,
    /// Creates a domain.
    Create {
        /// The user whose processes may join as it.
        uid: u32,
        /// Its number; the broker chooses where there is none.
        domid: Option<DomId>,
        /// Its name.
        name: String,
    },
    /// Destroys a domain.
    Destroy(DomId),
    /// Requests the first domain with a number greater than this, or the first of all.
    Next(Option<DomId>),
    /// Requests a reply once the domain has a member, or has none.
    Await {
        /// The domain.
        domid: DomId,
        /// Whether a member is awaited, or none.
        alive: bool,
    },
    /// Requests the process of the domain's member, which is sent as a descriptor.
    Process(DomId),
    /// Requests a pipe, sent as a descriptor, that says when an arena offered to this domain was retired.
    Retirements,
    /// Requests the longest turn of the broker's loop.
    LongestTurn,
    /// First message: take up the membership of a domain that an earlier broker gave, with its token.
    Rejoin {
        /// The domain.
        domid: DomId,
        /// The token of [`Reply::Joined`].
        token: Token,
    },
    /// Takes up a port of an earlier broker, to which no peer can bind any more.
    RestorePort(EventPort),
    /// The client has offered all arenas and taken up all ports that it had at an earlier broker.
    Resumed,
    /// Asks whether the domain's process has taken up its membership. If not, the arenas that an earlier broker has passed
    /// are not in use any more.
    HasResumed(DomId),
}

/// The broker's reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The request was carried out; what it requests is sent as a descriptor.
    Done,
    /// An arena of so many pages, sent as a descriptor.
    Arena(u32),
    /// A port, with the incoming and the outgoing pipe as two descriptors.
    Port(EventPort),
    /// A domain.
    Domain(DomainInfo),
    /// There is no further domain.
    End,
    /// A time in microseconds.
    Microseconds(u32),
    /// The client has joined, and a later broker will know it by this.
    Joined(Token),
    /// The request was refused.
    Failed(Failure, String),
}

/// The broker's record of a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainInfo {
    /// Its number.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// The user whose processes may join as it.
    pub uid: u32,
    /// The process that has joined as it, if any.
    pub pid: Option<u32>,
}

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Failure {
    /// The request is invalid.
    Protocol = 1,
    /// The client has no permission.
    Denied = 2,
    /// The domain does not exist, or has no member.
    NoDomain = 3,
    /// The domain has no arena for the client.
    NoArena = 4,
    /// The domain has no such unbound port for the client.
    NoPort = 5,
    /// A limit is reached.
    NoSpace = 6,
    /// The name, number or membership is taken.
    Taken = 7,
    /// The broker waits for the members of its predecessor: the same request may be served in a moment.
    Away = 8,
}

impl Failure {
    fn from_byte(byte: u8) -> Option<Self> {
        use Failure::{Away, Denied, NoArena, NoDomain, NoPort, NoSpace, Protocol, Taken};
        [Protocol, Denied, NoDomain, NoArena, NoPort, NoSpace, Taken, Away]
            .into_iter()
            .find(|f| *f as u8 == byte)
    }
}

/// The fields of a message, whose meaning depends on its kind.
#[derive(Default)]
struct Parts<'a> {
    kind: u8,
    detail: u8,
    a: u16,
    b: u32,
    c: u32,
    text: &'a str,
}

impl<'a> Parts<'a> {
    fn of(kind: u8) -> Self {
        Self { kind, ..Self::default() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind, self.detail];
        bytes.extend(self.a.to_le_bytes());
        bytes.extend(self.b.to_le_bytes());
        bytes.extend(self.c.to_le_bytes());
        let end = (0..=self.text.len().min(MAX_TEXT)).rev().find(|n| self.text.is_char_boundary(*n));
        bytes.extend(&self.text.as_bytes()[..end.unwrap_or(0)]);
        bytes
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, text) = bytes.split_first_chunk::<HEAD>()?;
        let text = (text.len() <= MAX_TEXT).then(|| std::str::from_utf8(text).ok())??;
        let [kind, detail, a0, a1, b0, b1, b2, b3, c0, c1, c2, c3] = *head;
        let a = u16::from_le_bytes([a0, a1]);
        let b = u32::from_le_bytes([b0, b1, b2, b3]);
        let c = u32::from_le_bytes([c0, c1, c2, c3]);
        Some(Self { kind, detail, a, b, c, text })
    }

    fn domid(&self) -> Option<DomId> {
        (self.a < DomId::FIRST_RESERVED.0).then_some(DomId(self.a))
    }

    fn domid_or_none(&self) -> Option<Option<DomId>> {
        if self.a == NO_DOMAIN { Some(None) } else { self.domid().map(Some) }
    }
}

fn or_no_domain(domid: Option<DomId>) -> u16 {
    domid.map_or(NO_DOMAIN, |domid| domid.0)
}

impl Request {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let parts = match self {
            Self::Join(domid) => Parts { detail: VERSION, a: domid.0, ..Parts::of(1) },
            Self::Control => Parts { detail: VERSION, ..Parts::of(2) },
            Self::Offer { peer, pages } => Parts { a: peer.0, b: *pages, ..Parts::of(3) },
            Self::Fetch(owner) => Parts { a: owner.0, ..Parts::of(4) },
            Self::AllocUnbound(peer) => Parts { a: peer.0, ..Parts::of(5) },
            Self::BindInterdomain { peer, port } => Parts { a: peer.0, b: port.0, ..Parts::of(6) },
            Self::Close(port) => Parts { b: port.0, ..Parts::of(7) },
            Self::Store => Parts::of(8),
            Self::Create { uid, domid, name } => {
                Parts { a: or_no_domain(*domid), b: *uid, text: name, ..Parts::of(9) }
            }
            Self::Destroy(domid) => Parts { a: domid.0, ..Parts::of(10) },
            Self::Next(domid) => Parts { a: or_no_domain(*domid), ..Parts::of(11) },
            Self::Await { domid, alive } => Parts { detail: (*alive).into(), a: domid.0, ..Parts::of(12) },
            Self::Process(domid) => Parts { a: domid.0, ..Parts::of(13) },
            Self::Retirements => Parts::of(14),
            Self::LongestTurn => Parts::of(15),
            Self::Rejoin { domid, token } => {
                let text = token.to_text();
                return Parts { detail: VERSION, a: domid.0, text: &text, ..Parts::of(16) }.encode();
            }
            Self::RestorePort(port) => Parts { b: port.0, ..Parts::of(17) },
            Self::Resumed => Parts::of(18),
            Self::HasResumed(domid) => Parts { a: domid.0, ..Parts::of(19) },
        };
        parts.encode()
    }

    /// Decodes a message; `None` if it is not a valid request.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let parts = Parts::decode(bytes)?;
        Some(match (parts.kind, parts.detail) {
            (1, VERSION) => Self::Join(parts.domid()?),
            (2, VERSION) => Self::Control,
            (3, _) => Self::Offer { peer: parts.domid()?, pages: parts.b },
            (4, _) => Self::Fetch(parts.domid()?),
            (5, _) => Self::AllocUnbound(parts.domid()?),
            (6, _) => Self::BindInterdomain { peer: parts.domid()?, port: EventPort(parts.b) },
            (7, _) => Self::Close(EventPort(parts.b)),
            (8, _) => Self::Store,
            (9, _) => {
                let name = is_name(parts.text).then(|| parts.text.to_owned())?;
                Self::Create { uid: parts.b, domid: parts.domid_or_none()?, name }
            }
            (10, _) => Self::Destroy(parts.domid()?),
            (11, _) => Self::Next(parts.domid_or_none()?),
            (13, _) => Self::Process(parts.domid()?),
            (14, _) => Self::Retirements,
            (15, _) => Self::LongestTurn,
            (16, VERSION) => Self::Rejoin { domid: parts.domid()?, token: Token::from_text(parts.text)? },
            (17, _) => Self::RestorePort(EventPort(parts.b)),
            (18, _) => Self::Resumed,
            (19, _) => Self::HasResumed(parts.domid()?),
            (12, alive @ 0..=1) => Self::Await { domid: parts.domid()?, alive: alive == 1 },
            _ => return None,
        })
    }
}

impl Request {
    /// Whether a descriptor is sent with it.
    pub(super) fn has_descriptor(&self) -> bool {
        matches!(self, Self::Offer { .. })
    }
}

impl Reply {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let parts = match self {
            Self::Done => Parts::of(1),
            Self::Arena(pages) => Parts { b: *pages, ..Parts::of(2) },
            Self::Port(port) => Parts { b: port.0, ..Parts::of(3) },
            Self::Domain(domain) => Parts {
                detail: domain.pid.is_some().into(),
                a: domain.domid.0,
                b: domain.uid,
                c: domain.pid.unwrap_or(0),
                text: &domain.name,
                ..Parts::of(4)
            },
            Self::End => Parts::of(5),
            Self::Microseconds(time) => Parts { b: *time, ..Parts::of(7) },
            Self::Joined(token) => {
                let text = token.to_text();
                return Parts { text: &text, ..Parts::of(8) }.encode();
            }
            Self::Failed(why, text) => Parts { detail: *why as u8, text, ..Parts::of(6) },
        };
        parts.encode()
    }

    /// Decodes a message; `None` if it is not a valid reply.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let parts = Parts::decode(bytes)?;
        Some(match parts.kind {
            1 => Self::Done,
            2 => Self::Arena(parts.b),
            3 => Self::Port(EventPort(parts.b)),
            4 => Self::Domain(DomainInfo {
                domid: parts.domid()?,
                name: parts.text.to_owned(),
                uid: parts.b,
                pid: (parts.detail != 0).then_some(parts.c),
            }),
            5 => Self::End,
            7 => Self::Microseconds(parts.b),
            8 => Self::Joined(Token::from_text(parts.text)?),
            6 => Self::Failed(Failure::from_byte(parts.detail)?, parts.text.to_owned()),
            _ => return None,
        })
    }
}

/// Whether a text is a valid name of a domain, which may name a directory: 1 to 64 bytes without `/` and control characters,
/// and neither `.` nor `..`.
pub(super) fn is_name(text: &str) -> bool {
    let fine = |c: char| c != '/' && !c.is_control();
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(fine) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_encoded_and_decoded_is_the_same() {
        let domid = DomId(5);
        let name = "guest-5".to_owned();
        for request in [
            Request::Join(domid),
            Request::Control,
            Request::Offer { peer: domid, pages: 1 << 14 },
            Request::Fetch(domid),
            Request::AllocUnbound(domid),
            Request::BindInterdomain { peer: domid, port: EventPort(77) },
            Request::Close(EventPort(u32::MAX)),
            Request::Store,
            Request::Create { uid: 1000, domid: None, name: name.clone() },
            Request::Create { uid: 0, domid: Some(domid), name },
            Request::Destroy(domid),
            Request::Next(None),
            Request::Next(Some(domid)),
            Request::Await { domid, alive: true },
            Request::Await { domid, alive: false },
            Request::Process(domid),
            Request::Retirements,
            Request::LongestTurn,
            Request::Rejoin { domid, token: Token::from_bytes([0x5a; 16]) },
            Request::RestorePort(EventPort(9)),
            Request::Resumed,
            Request::HasResumed(domid),
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
    }

    #[test]
    fn reply_encoded_and_decoded_is_the_same() {
        let info = |pid| DomainInfo { domid: DomId(1), name: "x".into(), uid: 7, pid };
        for reply in [
            Reply::Done,
            Reply::Arena(64),
            Reply::Port(EventPort(1)),
            Reply::Domain(info(None)),
            Reply::Domain(info(Some(4711))),
            Reply::End,
            Reply::Microseconds(u32::MAX),
            Reply::Joined(Token::from_bytes([0xa5; 16])),
            Reply::Failed(Failure::Taken, "the name is taken".into()),
        ] {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
    }

    #[test]
    fn reply_with_a_long_text_is_truncated_between_characters() {
        let text = "ä".repeat(MAX_TEXT);
        let bytes = Reply::Failed(Failure::Denied, text).encode();
        assert_eq!(bytes.len(), MAX_MESSAGE);
        assert!(Reply::decode(&bytes).is_some());
    }

    #[test]
    fn decode_of_a_truncated_message_or_another_version_is_none() {
        let bytes = Request::Join(DomId(1)).encode();
        for len in 0..bytes.len() {
            assert_eq!(Request::decode(&bytes[..len]), None);
        }
        let mut other = bytes;
        other[1] = VERSION + 1;
        assert_eq!(Request::decode(&other), None);
        assert_eq!(Request::decode(&vec![1; MAX_MESSAGE + 1]), None);
    }

    proptest! {
        #[test]
        fn decode_of_any_bytes_is_none_or_encodes_again(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(request) = Request::decode(&bytes) {
                prop_assert_eq!(Request::decode(&request.encode()), Some(request));
            }
            if let Some(reply) = Reply::decode(&bytes) {
                prop_assert_eq!(Reply::decode(&reply.encode()), Some(reply));
            }
        }
    }
}
