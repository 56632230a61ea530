//! An Ethernet frame on its way through the switch: a private head, and a payload that stays where it is.

use arrayvec::ArrayVec;
use bytes::Bytes;

use crate::{Offload, Piece, Pin, Seg, headers::Malformed};

/// Bytes of a frame's private head. All headers that anybody here looks at lie in it (as in Linux's
/// netback, `XEN_NETBACK_TX_COPY_LEN`); a frame no longer than this has no other part.
pub const HEAD: usize = 128;
/// Most payload segments in a frame: Xen calls more than 20 an attack (`XEN_NETBK_LEGACY_SLOTS_MAX`).
pub const SEGS: usize = 20;
/// Most `iovec`s that [`Frame::iovecs`] gives, and one of the caller's before them.
pub const IOVECS: usize = SEGS + 2;

/// What [`Frame::iovecs`] fills.
pub type Iovecs = ArrayVec<libc::iovec, IOVECS>;

/// A frame has its [`SEGS`] segments already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame has at most {SEGS} segments")]
pub struct Full;

/// What keeps the memory of a frame's segments.
#[derive(Clone, Debug, Default)]
#[expect(dead_code, reason = "nobody reads what is kept: it is there to be dropped")]
enum Keep {
    #[default]
    Nothing,
    Pin(Pin),
    Bytes(Bytes),
}

/// A frame. Cloning it copies its head and the addresses of its payload, never the payload.
///
/// The head is private: it has been copied out of the sender's reach, and what was checked there stays
/// true. The payload may be changing under our eyes, so it is copied exactly once, at its destination.
// The head fills the first two cache lines, what is known of the frame the third; a short frame has no more.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Frame {
    head: [u8; HEAD],
    keep: Keep,
    len: u32,
    head_len: u8,
    offload: Offload,
    body: ArrayVec<Seg, SEGS>,
}

impl Default for Frame {
    fn default() -> Frame {
        Frame::new()
    }
}

impl Frame {
    /// A frame without bytes.
    pub const fn new() -> Frame {
        Frame {
            head: [0; HEAD],
            keep: Keep::Nothing,
            len: 0,
            head_len: 0,
            offload: Offload::NONE,
            body: ArrayVec::new_const(),
        }
    }

    /// A finished frame with a copy of `bytes`; what exceeds the head goes to an allocation of its own.
    pub fn from_slice(bytes: &[u8]) -> Frame {
        let mut frame = Frame::new();
        frame.set_slice(bytes);
        frame
    }

    /// A finished frame that owns its bytes; only the head is copied.
    pub fn from_bytes(bytes: Bytes) -> Frame {
        let mut frame = Frame::new();
        let head = bytes.len().min(HEAD);
        frame.fill_head(head).copy_from_slice(&bytes[..head]);
        if bytes.len() > head {
            frame.own(bytes.slice(head..));
        }
        frame
    }

    /// Makes this a finished frame with a copy of `bytes`, as [`Frame::from_slice`].
    pub fn set_slice(&mut self, bytes: &[u8]) {
        self.clear();
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD));
        self.fill_head(head.len()).copy_from_slice(head);
        if !rest.is_empty() {
            self.own(Bytes::copy_from_slice(rest));
        }
    }

    /// Takes everything out of it and lets go of its pages.
    #[inline]
    pub fn clear(&mut self) {
        self.drop_body();
        self.len = 0;
        self.head_len = 0;
        self.offload = Offload::NONE;
    }

    /// Makes the head `len` bytes long (at most [`HEAD`]: more is clamped) and lends it to be written,
    /// zeroed, so that nothing of an earlier frame can ever leak out of it.
    #[inline]
    pub fn fill_head(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(HEAD);
        self.len = self.len - u32::from(self.head_len) + len as u32;
        self.head_len = len as u8;
        let head = &mut self.head[..len];
        head.fill(0);
        head
    }

    /// Shortens the head to `len` bytes; does nothing if it is no longer than that.
    pub fn shorten_head(&mut self, len: usize) {
        if len < usize::from(self.head_len) {
            self.len -= u32::from(self.head_len) - len as u32;
            self.head_len = len as u8;
        }
    }

    /// Puts a VLAN tag where it belongs, behind the addresses. The head must have room for its four bytes and
    /// hold the addresses; else nothing happens.
    pub(crate) fn insert_tag(&mut self, tag: [u8; 4]) {
        let len = usize::from(self.head_len);
        if !(12..=HEAD - tag.len()).contains(&len) {
            return;
        }
        self.head.copy_within(12..len, 16);
        self.head[12..16].copy_from_slice(&tag);
        self.head_len += 4;
        self.len += 4;
        if let Some(csum) = &mut self.offload.csum {
            csum.start = csum.start.saturating_add(4);
        }
    }

    /// Gives the frame what keeps the segments that are pushed to it from now on. Those it had are gone.
    pub fn pin(&mut self, pin: Pin) {
        self.drop_body();
        self.keep = Keep::Pin(pin);
    }

    /// Adds a segment after what is there; an empty one is left out.
    pub fn push(&mut self, seg: Seg) -> Result<(), Full> {
        if seg.is_empty() {
            return Ok(());
        }
        let len = self.len.checked_add(seg.len() as u32).ok_or(Full)?;
        self.body.try_push(seg).map_err(|_| Full)?;
        self.len = len;
        Ok(())
    }

    /// Says what is left to do.
    #[inline]
    pub fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }

    /// What is left to do.
    #[inline]
    pub fn offload(&self) -> &Offload {
        &self.offload
    }

    /// Length of the whole frame in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The private head: the whole frame if that is no longer than [`HEAD`].
    #[inline]
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// The private head, to be changed.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        &mut self.head[..usize::from(self.head_len)]
    }

    /// Whether the head is the whole frame.
    #[inline]
    pub fn is_head_only(&self) -> bool {
        self.body.is_empty()
    }

    /// The head, if it is not empty, and then the payload.
    pub fn segs(&self) -> impl Iterator<Item = Piece<'_>> + '_ {
        let head = Some(Piece::private(self.head())).filter(|head| !head.is_empty());
        head.into_iter().chain(self.body())
    }

    /// The payload beyond the head.
    pub fn body(&self) -> impl Iterator<Item = Piece<'_>> + '_ {
        self.body.iter().map(|seg| Piece::shared(*seg))
    }

    /// The bytes from `at` up to `at + len` in pieces, none empty; less where the frame ends before.
    pub fn range(&self, at: usize, len: usize) -> impl Iterator<Item = Piece<'_>> + '_ {
        let (mut skip, mut left) = (at, len);
        self.segs().filter_map(move |piece| {
            let part = piece.part(skip, left);
            skip -= skip.min(piece.len());
            left -= part.len();
            (!part.is_empty()).then_some(part)
        })
    }

    /// Copies the frame to the front of `to`; gives how many bytes that were: the shorter of the two.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.segs() {
            done += piece.copy_to(&mut to[done..]);
        }
        done
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(&mut bytes);
        bytes
    }

    /// Appends the frame's bytes as `iovec`s, for `writev` straight from the pages they lie in. `into` must
    /// have at most one entry already. The entries are good while the frame is.
    pub fn iovecs(&self, into: &mut Iovecs) {
        for piece in self.segs().take(into.remaining_capacity()) {
            into.push(libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() });
        }
    }

    /// Makes this a copy of `other` as [`Clone`] does, touching only what `other` uses.
    #[inline]
    pub fn copy_from(&mut self, other: &Frame) {
        self.copy_outline(other);
        self.body.extend(other.body.iter().copied());
        self.len = other.len;
    }

    /// Makes this the first `head_len` bytes of `other`'s head, followed by `len` bytes of `other` from
    /// `at` on, which is not before `head_len`. Pages are shared, the rest of the head is copied.
    pub(crate) fn copy_part(
        &mut self,
        other: &Frame,
        head_len: usize,
        at: usize,
        len: usize,
    ) -> Result<(), Malformed> {
        self.copy_outline(other);
        let head = other.head();
        let part = head.get(at..head.len().min(at + len)).unwrap_or_default();
        self.head.get_mut(head_len..head_len + part.len()).ok_or(Malformed)?.copy_from_slice(part);
        self.head_len = (head_len + part.len()) as u8;
        self.len = u32::from(self.head_len);
        let (mut skip, mut left) = ((at + part.len()).saturating_sub(head.len()), len - part.len());
        for seg in &other.body {
            let cut = seg.part(skip, left);
            skip -= skip.min(seg.len());
            left -= cut.len();
            self.push(cut).map_err(|_| Malformed)?;
        }
        Ok(())
    }

    /// Takes over `other`'s head, metadata and hold on its pages, but none of its segments.
    pub(crate) fn copy_outline(&mut self, other: &Frame) {
        self.clear();
        self.head_len = other.head_len;
        // A whole cache line costs what a part of one does, and a copy of fixed size is no call.
        if other.head_len <= 64 {
            self.head[..64].copy_from_slice(&other.head[..64]);
        } else {
            self.head = other.head;
        }
        self.len = u32::from(other.head_len);
        self.offload = other.offload;
        if !other.body.is_empty() {
            self.keep = other.keep.clone();
        }
    }

    fn own(&mut self, bytes: Bytes) {
        let seg = own_seg(&bytes);
        self.len += bytes.len() as u32;
        self.body.push(seg);
        self.keep = Keep::Bytes(bytes);
    }

    #[inline]
    fn drop_body(&mut self) {
        self.len = u32::from(self.head_len);
        self.body.clear();
        if !matches!(self.keep, Keep::Nothing) {
            self.keep = Keep::Nothing;
        }
    }
}

#[allow(unsafe_code)] // the one place where a frame becomes the keeper of what its segment points to
fn own_seg(bytes: &Bytes) -> Seg {
    // SAFETY: the bytes of a `Bytes` never move nor change while a clone of it lives, and the caller keeps
    // one in the frame for as long as the segment is in it.
    unsafe { Seg::new(bytes.as_ptr(), bytes.len() as u32) }
}

impl Clone for Frame {
    fn clone(&self) -> Frame {
        let mut frame = Frame::new();
        frame.copy_from(self);
        frame
    }

    fn clone_from(&mut self, other: &Frame) {
        self.copy_from(other);
    }
}

#[cfg(test)]
mod tests;
