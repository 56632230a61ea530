//! Exports a disk over NBD: opens the disk, listens on its socket, and serves until the disk is closed or it is
//! stopped.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blkfront::{Disk, Options};
use hypervisor::Hypervisor;
use xenstore::{Client, Nodes};

use super::blocks::DiskBlocks;
use super::buffers::{CommonBuffers, DiskBuffers};
use crate::dir;
use crate::error::{Error, Result, chain};
use crate::nbd::{Blocks, server};
use ring_abi::blkif::{key::DEV, vdev::Vdev};
use ring_abi::xenbus::key::BACKEND;

/// Pages of the rings as a power of two: 128 requests in flight.
const RING_PAGE_ORDER: u32 = 2;

/// Serves device `vdev` of this domain on a socket in `directory`, until `stop` becomes readable or the disk is closed. It
/// has at most `queues` queues, and buffers of its own; it borrows further ones from `common`.
///
/// # Errors
/// [`Error::Other`] if the disk cannot be opened, or the domain cannot grant the pages of its buffers; [`Error::File`] if the socket cannot be bound; [`Error::Io`] if
/// serving fails while the disk is open.
pub fn run(
    hv: &Arc<dyn Hypervisor>,
    directory: &Path,
    vdev: u32,
    queues: u32,
    common: Arc<CommonBuffers>,
    stop: BorrowedFd<'_>,
) -> Result<()> {
    let dev = device_name(hv, vdev)?;
    let socket = Socket::bind(dir::nbd(directory, &dev))?;
    let options = Options { ring_page_order: RING_PAGE_ORDER, queues, ..Options::default() };
    let opened = Disk::open_until(hv.clone(), hv.clone(), hv.clone(), vdev, options, stop);
    let Some(disk) = opened.map_err(failed)? else { return Ok(()) };
    let buffers = match DiskBuffers::new(&disk, common) {
        Ok(buffers) => buffers,
        Err(error) => {
            disk.close().map_err(failed)?;
            return Err(failed(error));
        }
    };
    let mut blocks = DiskBlocks::new(disk, dev.clone(), buffers);
    tracing::info!(dev, size = blocks.export().size, socket = %socket.path.display(), "exported");
    let served = server::serve(&socket.listener, &mut blocks, server::HANDSHAKE_TIMEOUT, stop);
    let disk = blocks.into_disk();
    let closed = disk.is_closed();
    tracing::info!(dev, "closing");
    disk.close().map_err(failed)?;
    match served {
        Err(e) if !closed => Err(Error::io(format!("exporting {dev}"), e)),
        _ => Ok(()),
    }
}

/// The name by which the toolstack knows the disk.
fn device_name(hv: &Arc<dyn Hypervisor>, vdev: u32) -> Result<String> {
    let mut store = Client::connect(&hv)?;
    let back = store.read_text(&format!("/local/domain/{}/device/vbd/{vdev}/{BACKEND}", hv.domid()))?;
    let name = store.read_text(&format!("{back}/{DEV}"));
    Ok(name.unwrap_or_else(|_| Vdev::from_number(vdev).to_string()))
}

fn failed(error: blkfront::Error) -> Error {
    Error::Other(chain(&error).to_string())
}

/// A listening socket, whose file is removed when this is dropped.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds the socket, replacing that of an earlier guest.
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
