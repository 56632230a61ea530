//! A guest's disk that is read at depth 1, as a program of the guest would: by its export.

use super::stalls::Stalls;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testkit::nbd::{BLOCK, Nbd};

/// Bytes of the image.
pub(super) const IMAGE: u64 = 16 << 20;
/// Between two reads.
const PAUSE: Duration = Duration::from_millis(1);

/// A thread that reads one block after the other until this is dropped. A stall is the time that a read takes.
pub(super) struct DiskWatch {
    stalls: Arc<Stalls>,
    thread: Option<JoinHandle<()>>,
}

impl DiskWatch {
    /// Watches the disk that is exported by this socket.
    ///
    /// # Errors
    /// There is no export.
    pub(super) fn start(socket: &Path) -> Result<Self, String> {
        let mut client = Nbd::connect(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
        let stalls = Arc::new(Stalls::default());
        let observed = Arc::clone(&stalls);
        let thread = std::thread::spawn(move || {
            if let Err(error) = watch(&mut client, &observed) {
                observed.failed(format!("reading the disk: {error}"));
            }
        });
        Ok(Self { stalls, thread: Some(thread) })
    }

    pub(super) fn stalls(&self) -> &Stalls {
        &self.stalls
    }
}

fn watch(client: &mut Nbd, stalls: &Stalls) -> std::io::Result<()> {
    let blocks = client.size() / BLOCK as u64;
    for block in (0..blocks).cycle() {
        let start = Instant::now();
        client.read(block)?;
        if !stalls.completed(start.elapsed()) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        self.stalls.stop();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
