//! A disk's export: opens the disk, listens at its socket, serves until the disk is closed or it is told to stop.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blkfront::{Disk, Options};
use hypervisor::Hypervisor;
use xenstore::{Client, Nodes};

use super::blocks::DiskBlocks;
use crate::dir;
use crate::error::{Error, Result};
use crate::nbd::{Export, server};
use ring_abi::blkif::vdev::Vdev;

/// Pages of a ring as a power of two: 128 requests in flight.
const RING_PAGE_ORDER: u32 = 2;

/// Serves device `vdev` of this domain at a socket in `directory`.
///
/// # Errors
/// It cannot be opened, or its socket not be had; not that it was closed.
pub fn run(hv: &Arc<dyn Hypervisor>, directory: &Path, vdev: u32, stop: BorrowedFd<'_>) -> Result<()> {
    let mut store = Client::new(hv.store()?);
    let home = format!("/local/domain/{}/device/vbd/{vdev}", hv.domid());
    let back = store.read_text(&format!("{home}/backend"))?;
    let dev = store.read_text(&format!("{back}/dev")).unwrap_or_else(|_| Vdev::from_number(vdev).to_string());
    let socket = Socket::bind(dir::nbd(directory, &dev))?;
    let options = Options { ring_page_order: RING_PAGE_ORDER, ..Options::default() };
    let disk = Disk::open_with(hv.clone(), store, vdev, options).map_err(|e| Error::Other(e.to_string()))?;
    let info = disk.info();
    let export = Export {
        name: dev.clone(),
        size: info.sectors * 512,
        block: info.sector_size,
        read_only: info.read_only,
        trim: false,
    };
    tracing::info!(disk = dev, size = export.size, socket = %socket.path.display(), "exported");
    let mut blocks = DiskBlocks::new(disk);
    let served = server::serve(&socket.listener, &export, &mut blocks, stop);
    let disk = blocks.into_disk();
    let closed = disk.is_closed();
    tracing::info!(disk = dev, "closing");
    disk.close().map_err(|e| Error::Other(e.to_string()))?;
    match served {
        Err(e) if !closed => Err(Error::io(format!("exporting {dev}"), e)),
        _ => Ok(()),
    }
}

/// A listening socket whose file goes with it.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Replaces what an earlier guest left there.
    fn bind(path: PathBuf) -> Result<Socket> {
        let failed = |e| Error::file(&path, "listening", e);
        remove(&path);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Socket { listener, path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
