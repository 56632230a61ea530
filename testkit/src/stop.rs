//! A flag that stops a test's threads.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets a flag that stops other threads when it is dropped, also if the test panics: `std::thread::scope` would otherwise
/// wait for them forever.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
