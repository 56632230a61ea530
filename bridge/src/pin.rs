//! Pins: they keep a frame's pages mapped as long as a clone of the frame exists.

use std::{fmt, sync::Arc};

/// The owner of pages that frames refer to: a guest's interface, or a buffer pool.
///
/// The owner counts the frames that hold each of its tokens (a request, a buffer). Both methods may be called from any
/// thread, and must neither block nor allocate: they are called on the data path.
///
/// After a release by the switch's worker every port is flushed, so that the owner's port can respond to released
/// requests. After a release by another thread (a program that received frames from a pair of ports) that flush comes
/// within a second, unless the owner makes its port's `fd` readable.
pub trait PinOwner: Send + Sync {
    /// Counts one more frame that holds `token`.
    fn hold(&self, token: u32);
    /// Counts one frame fewer that holds `token`; at zero the owner may reuse its pages.
    fn release(&self, token: u32);
}

/// One frame's hold on one token of an owner: a clone holds the token once more, a drop releases it.
///
/// A pin also keeps the owner alive, so that a queued frame may outlive the port that it came from: the last such frame
/// frees the owner and its mappings.
pub struct Pin {
    owner: Arc<dyn PinOwner>,
    token: u32,
}

impl Pin {
    /// Makes a pin of a hold of `token` that `owner` has already counted.
    pub fn adopt(owner: Arc<dyn PinOwner>, token: u32) -> Pin {
        Pin { owner, token }
    }

    /// The token, if it is one of `owner`'s.
    pub(crate) fn token_of(&self, owner: &Arc<dyn PinOwner>) -> Option<u32> {
        std::ptr::addr_eq(Arc::as_ptr(&self.owner), Arc::as_ptr(owner)).then_some(self.token)
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
