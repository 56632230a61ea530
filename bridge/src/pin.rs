//! What keeps a frame's pages where they are while anybody still has the frame.

use std::{fmt, sync::Arc};

/// The owner of pages that frames point into: a guest's interface, a tap's buffer pool.
///
/// It counts, for each of its tokens (a request, a buffer), how many frames hold it. Both methods may be
/// called from any thread, and must neither block nor allocate: they run on the data path.
///
/// A release by the switch's worker is followed by a `flush` of every port, so that the owner's port can
/// answer what was released. After a release by another thread (a program that took frames from a pair of
/// ports) that flush comes within a second, unless the owner makes its port's `fd` readable.
pub trait Hold: Send + Sync {
    /// One more frame holds `token`.
    fn hold(&self, token: u32);
    /// One frame fewer holds `token`; at zero its pages may be given back.
    fn release(&self, token: u32);
}

/// One frame's hold on one token of an owner: cloning holds once more, dropping releases.
///
/// It also keeps the owner itself alive, so a frame queued anywhere outlives the port it came from without
/// harm: the last such frame frees the owner and, with it, the owner's mappings.
pub struct Pin {
    owner: Arc<dyn Hold>,
    token: u32,
}

impl Pin {
    /// Takes over one hold of `token` that `owner` has already counted.
    pub fn adopt(owner: Arc<dyn Hold>, token: u32) -> Pin {
        Pin { owner, token }
    }
}

impl Clone for Pin {
    fn clone(&self) -> Pin {
        self.owner.hold(self.token);
        Pin { owner: Arc::clone(&self.owner), token: self.token }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.owner.release(self.token);
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("token", &self.token).finish_non_exhaustive()
    }
}
