// Not a core: does I/O or calls a hypervisor.

//! An Ethernet frame inside the switch: a private head, and a payload that is not copied.

use arrayvec::ArrayVec;
use bytes::Bytes;

use crate::{Fragment, FragmentRef, Malformed, Offload, Pin};

/// Bytes of a frame's private head. It has all headers that the switch reads (as in Linux's netback,
/// `XEN_NETBACK_TX_COPY_LEN`), and the whole of a frame that is not longer.
pub const HEAD: usize = 124;
/// Those, and a VLAN tag that is inserted later.
const ROOM: usize = HEAD + 4;
/// Most payload fragments of a frame. Linux's netback takes more than 20 for an attack (`XEN_NETBK_LEGACY_SLOTS_MAX`).
pub const MAX_FRAGMENTS: usize = 20;
/// Most `iovec`s that [`Frame::iovecs`] makes, and one of the caller's before them.
pub const MAX_IOVECS: usize = MAX_FRAGMENTS + 2;

/// The `iovec`s that [`Frame::iovecs`] makes.
pub type Iovecs = ArrayVec<libc::iovec, MAX_IOVECS>;

/// An entry of [`Iovecs`] for `len` bytes at `start`.
#[inline]
pub fn iovec(start: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast(), iov_len: len }
}

/// A frame has [`MAX_FRAGMENTS`] fragments already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame has at most {MAX_FRAGMENTS} fragments")]
pub struct TooManyFragments;

/// Owns the memory of a frame's fragments.
#[derive(Clone, Debug, Default)]
#[expect(dead_code, reason = "held for its drop only")]
enum Backing {
    #[default]
    None,
    Pin(Pin),
    Bytes(Bytes),
}

/// A frame. Cloning it copies its head and the addresses of its payload, never the payload.
///
/// The head is private memory, which the sender cannot change, so that checks made on it stay valid. The payload may be
/// in memory that the sender can change at any time, so it is copied exactly once, to its destination.
///
/// ```
/// use bridge::{Frame, HEAD};
///
/// let frame = Frame::from_slice(&[7; 1500]);
/// assert_eq!((frame.len(), frame.head().len()), (1500, HEAD));
/// assert_eq!(frame.body().map(|fragment| fragment.len()).sum::<usize>(), 1500 - HEAD);
/// ```
// The head fills the first two cache lines and the other fields but `body` the third, so that a short frame uses three.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Frame {
    head: [u8; ROOM],
    backing: Backing,
    len: u32,
    head_len: u8,
    offload: Offload,
    body: ArrayVec<Fragment, MAX_FRAGMENTS>,
}

impl Default for Frame {
    fn default() -> Frame {
        Frame::new()
    }
}

impl Frame {
    /// Makes a frame without bytes.
    pub const fn new() -> Frame {
        Frame {
            head: [0; ROOM],
            backing: Backing::None,
            len: 0,
            head_len: 0,
            offload: Offload::NONE,
            body: ArrayVec::new_const(),
        }
    }

    /// Makes a frame with a copy of `bytes` and no offloads; bytes beyond the head are copied into an allocation.
    pub fn from_slice(bytes: &[u8]) -> Frame {
        let mut frame = Frame::new();
        frame.set_slice(bytes);
        frame
    }

    /// Makes a frame that owns `bytes`, without offloads; only the head is copied.
    pub fn from_bytes(bytes: Bytes) -> Frame {
        let mut frame = Frame::new();
        let head = bytes.len().min(HEAD);
        frame.fill_head(head).copy_from_slice(&bytes[..head]);
        if bytes.len() > head {
            frame.own(bytes.slice(head..));
        }
        frame
    }

    /// Replaces the frame by a copy of `bytes`, as [`Frame::from_slice`].
    pub fn set_slice(&mut self, bytes: &[u8]) {
        self.clear();
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD));
        self.fill_head(head.len()).copy_from_slice(head);
        if !rest.is_empty() {
            self.own(Bytes::copy_from_slice(rest));
        }
    }

    /// Empties the frame and releases its pages.
    #[inline]
    pub fn clear(&mut self) {
        self.drop_body();
        self.len = 0;
        self.head_len = 0;
        self.offload = Offload::NONE;
    }

    /// Makes the head `len` bytes long (at most [`HEAD`]: more is clamped) and returns it to be written, zeroed, so
    /// that no bytes of an earlier frame leak.
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

    /// Inserts a VLAN tag behind the addresses. Does nothing unless the head has the addresses and four bytes to spare.
    pub(crate) fn insert_tag(&mut self, tag: [u8; 4]) {
        let len = usize::from(self.head_len);
        if !(12..=ROOM - tag.len()).contains(&len) {
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

    /// Removes the VLAN tag behind the addresses. Does nothing unless the head has it.
    pub(crate) fn remove_tag(&mut self) {
        let len = usize::from(self.head_len);
        if len < 18 {
            return;
        }
        self.head.copy_within(16..len, 12);
        self.head_len -= 4;
        self.len -= 4;
        if let Some(csum) = &mut self.offload.csum {
            csum.start = csum.start.saturating_sub(4);
        }
    }

    /// Sets the pin that keeps the pages of the fragments pushed from now on. Earlier fragments are removed.
    pub fn pin(&mut self, pin: Pin) {
        self.drop_body();
        self.backing = Backing::Pin(pin);
    }

    /// The pin that keeps the payload, if the frame has one.
    #[inline]
    pub fn held_by(&self) -> Option<&Pin> {
        match &self.backing {
            Backing::Pin(pin) => Some(pin),
            Backing::None | Backing::Bytes(_) => None,
        }
    }

    /// Appends a fragment; an empty one is left out.
    pub fn push(&mut self, fragment: Fragment) -> Result<(), TooManyFragments> {
        if fragment.is_empty() {
            return Ok(());
        }
        let len = self.len.checked_add(fragment.len() as u32).ok_or(TooManyFragments)?;
        self.body.try_push(fragment).map_err(|_| TooManyFragments)?;
        self.len = len;
        Ok(())
    }

    /// Sets the offloads: the work that the sender has left undone.
    #[inline]
    pub fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }

    /// The offloads: the work that the sender has left undone.
    #[inline]
    pub fn offload(&self) -> &Offload {
        &self.offload
    }

    /// Length of the whole frame in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the frame has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The private head: the whole frame if that is not longer than [`HEAD`].
    #[inline]
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// The private head, to be written.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        &mut self.head[..usize::from(self.head_len)]
    }

    /// Whether the head is the whole frame.
    #[inline]
    pub fn is_head_only(&self) -> bool {
        self.body.is_empty()
    }

    /// The head, if it is not empty, and then the payload's fragments.
    pub fn fragments(&self) -> impl Iterator<Item = FragmentRef<'_>> + '_ {
        let head = Some(FragmentRef::private(self.head())).filter(|head| !head.is_empty());
        head.into_iter().chain(self.body())
    }

    /// The payload's fragments.
    pub fn body(&self) -> impl Iterator<Item = FragmentRef<'_>> + '_ {
        self.body.iter().map(|fragment| FragmentRef::shared(*fragment))
    }

    /// The bytes from `at` up to `at + len`, or to the frame's end, as non-empty fragments.
    pub fn range(&self, at: usize, len: usize) -> impl Iterator<Item = FragmentRef<'_>> + '_ {
        let mut skip = at;
        let mut left = len;
        self.fragments().filter_map(move |fragment| {
            let part = fragment.part(skip, left);
            skip -= skip.min(fragment.len());
            left -= part.len();
            (!part.is_empty()).then_some(part)
        })
    }

    /// Copies the frame to the start of `to`; returns the number of bytes copied, the shorter length of the two.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for fragment in self.fragments() {
            done += fragment.copy_to(&mut to[done..]);
        }
        done
    }

    /// Copies all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(&mut bytes);
        bytes
    }

    /// Appends the frame's bytes as `iovec`s, for `writev` from the pages that they are in. `into` must have at most
    /// one entry already. The entries are valid as long as the frame is neither changed nor dropped.
    pub fn iovecs(&self, into: &mut Iovecs) {
        for fragment in self.fragments().take(into.remaining_capacity()) {
            into.push(iovec(fragment.as_ptr().cast_mut(), fragment.len()));
        }
    }

    /// Makes this a copy of `other` as [`Clone`] does, without touching the unused rest of the head.
    #[inline]
    pub fn copy_from(&mut self, other: &Frame) {
        self.copy_outline(other);
        self.body.extend(other.body.iter().copied());
        self.len = other.len;
    }

    /// Makes this the first `head_len` bytes of `other`'s head, followed by `len` bytes of `other` from `at` on, which
    /// is not before `head_len`. Bytes of the head are copied, pages are shared.
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
        let mut skip = (at + part.len()).saturating_sub(head.len());
        let mut left = len - part.len();
        for fragment in &other.body {
            let cut = fragment.part(skip, left);
            skip -= skip.min(fragment.len());
            left -= cut.len();
            self.push(cut).map_err(|_| Malformed)?;
        }
        Ok(())
    }

    /// Copies `other`'s head, offloads and pin, but none of its fragments.
    pub(crate) fn copy_outline(&mut self, other: &Frame) {
        self.clear();
        self.head_len = other.head_len;
        // A whole cache line costs as much as a part of one, and a copy of fixed size compiles to no call.
        if other.head_len <= 64 {
            self.head[..64].copy_from_slice(&other.head[..64]);
        } else {
            self.head = other.head;
        }
        self.len = u32::from(other.head_len);
        self.offload = other.offload;
        if !other.body.is_empty() {
            self.backing = other.backing.clone();
        }
    }

    fn own(&mut self, bytes: Bytes) {
        let fragment = own_fragment(&bytes);
        self.len += bytes.len() as u32;
        self.body.push(fragment);
        self.backing = Backing::Bytes(bytes);
    }

    #[inline]
    fn drop_body(&mut self) {
        self.len = u32::from(self.head_len);
        self.body.clear();
        if !matches!(self.backing, Backing::None) {
            self.backing = Backing::None;
        }
    }
}

#[allow(unsafe_code)] // makes a fragment of bytes that the frame will own
fn own_fragment(bytes: &Bytes) -> Fragment {
    // SAFETY: the bytes of a `Bytes` neither move nor change while a clone of it lives, and the caller keeps one in the
    // frame as long as the fragment is in it.
    unsafe { Fragment::new(bytes.as_ptr(), bytes.len() as u32) }
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
