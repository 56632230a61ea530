//! The smallest block frontend in a domain of a real Xen host: `xen-front xvda` fills the disk with a pattern,
//! flushes, closes, opens it again, reads all of it back, and prints its SHA-256 for dom0 to compare.
//!
//! The disk must not be bound to the kernel's xen-blkfront. `xpv guest` does the same for all kinds of devices; this is
//! the least code that it takes.

use blkfront::{Disk, Options};
use hypervisor::Hypervisor;
use hypervisor::xen::Xen;
use ring_abi::blkif::vdev::Vdev;
use sha2::{Digest, Sha256};
use std::error::Error;
use std::sync::Arc;
use toolstack::demo::pattern::{BLOCK, Pattern};
use xenbus::stats::Stats;

/// Bytes of each write and read.
const CHUNK: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter("debug").with_writer(std::io::stderr).init();
    let name = std::env::args().nth(1).ok_or("the disk's name, such as xvda, is missing")?;
    let vdev = Vdev::parse(&name).ok_or("expected a disk such as xvda")?.number();
    let xen: Arc<dyn Hypervisor> = Arc::new(Xen::open()?);

    let mut disk = open(&xen, vdev)?;
    println!("{name}: {:?}, {} requests at once", disk.info(), disk.depth());
    each_chunk(&mut disk, |disk, offset, bytes| disk.write_at(offset, bytes))?;
    disk.flush()?;
    let stats = disk.stats().snapshot();
    println!("{} write requests", stats.operation("write").map_or(0, |write| write.requests));
    disk.close()?;

    let mut disk = open(&xen, vdev)?;
    let mut hash = Sha256::new();
    each_chunk(&mut disk, |disk, offset, expected| {
        let mut bytes = vec![0; expected.len()];
        disk.read_at(offset, &mut bytes)?;
        let wrong = bytes.iter().zip(&*expected).position(|(read, written)| read != written);
        assert_eq!(wrong, None, "a byte differs, from offset {offset}");
        hash.update(bytes);
        Ok(())
    })?;
    disk.close()?;
    println!("sha256 {}", hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Ok(())
}

fn open(xen: &Arc<dyn Hypervisor>, vdev: u32) -> Result<Disk, Box<dyn Error>> {
    let options = Options { ring_page_order: 2, queues: 2, ..Options::default() };
    Ok(Disk::open_with(xen.clone(), xen.clone(), xen.clone(), vdev, options)?)
}

/// Calls `work` with the offset and the pattern of each chunk of the disk.
fn each_chunk(
    disk: &mut Disk,
    mut work: impl FnMut(&mut Disk, u64, &mut [u8]) -> blkfront::Result<()>,
) -> blkfront::Result<()> {
    let pattern = Pattern::new(1);
    let size = disk.info().ok_or(blkfront::Error::Closed)?.sectors * 512 / BLOCK as u64 * BLOCK as u64;
    for offset in (0..size).step_by(CHUNK) {
        let mut bytes = vec![0; CHUNK.min((size - offset) as usize)];
        for (number, block) in (offset / BLOCK as u64..).zip(bytes.chunks_mut(BLOCK)) {
            pattern.fill(number, block);
        }
        work(disk, offset, &mut bytes)?;
    }
    Ok(())
}
