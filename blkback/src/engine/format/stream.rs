// Not a core: does I/O or calls a hypervisor.

//! Copies into the guest's own image what only the images below have, in slices between the guest's operations, and leaves these images
//! then. The image's thread alone allocates, so that no write comes between the reading of a cluster and its copy. What was copied is in
//! the image's tables: who begins again passes over it.

use super::header;
use super::jobs::{LOOKS, SLICE};
use super::layer::{Found, Kind, Layer, Mapped};
use super::table_file::TableFile;
use super::worker::Worker;
use super::writes::Data;
use imago::StorageExt;
use std::io;
use std::ops::Range;

/// Bytes of a file that reach its medium as a whole, or not at all.
const SECTOR: usize = 512;

impl Worker {
    /// Copies what is found from a byte of the disk on; moves the byte on.
    pub(super) fn stream_slice(&mut self, at: &mut u64) -> io::Result<()> {
        let size = self.size();
        let cluster = self.mapped()?.header.cluster_size();
        let (mut left, mut looks) = (SLICE, LOOKS);
        while *at < size && left > 0 && looks > 0 {
            looks -= 1;
            let (found, length) = self.chain.find(0, *at, (size - *at).min(SLICE))?;
            let (Found::At { layer: 1.., .. } | Found::Compressed { layer: 1.. }) = found else {
                *at += length;
                continue;
            };
            let hole = self.hole(found, length) / cluster * cluster;
            if hole > 0 && at.is_multiple_of(cluster) {
                *at += hole;
                continue;
            }
            // The guest's own image has nothing of these clusters.
            let start = *at / cluster * cluster;
            let end = (*at + length).next_multiple_of(cluster).min(size).min(start + SLICE.max(cluster));
            self.copy_up(start..end)?;
            left = left.saturating_sub(end - start);
            *at = end;
        }
        self.answer();
        Ok(())
    }

    /// How many bytes of what was found are a hole of a raw image.
    fn hole(&self, found: Found, length: u64) -> u64 {
        let Found::At { layer, offset, .. } = found else { return 0 };
        match &self.chain.0[layer] {
            Layer { file, kind: Kind::Raw } => file.hole(offset, length),
            Layer { kind: Kind::Qcow2(_), .. } => 0,
        }
    }

    /// Copies whole clusters; those of zeroes read as such once there is nothing below.
    fn copy_up(&mut self, range: Range<u64>) -> io::Result<()> {
        let cluster = self.mapped()?.header.cluster_size();
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.chain.read(0, &mut bytes, range.start)?;
        let data = Data::Bytes(&bytes, range.start);
        let mut run = range.start..range.start;
        for part in bytes.chunks(cluster as usize) {
            let end = run.end + part.len() as u64;
            if part.iter().all(|byte| *byte == 0) {
                self.write_data(0, &data, run)?;
                run = end..end;
            } else {
                run.end = end;
            }
        }
        self.write_data(0, &data, run)
    }

    /// Leaves the images below, once nothing that only they have is left, and closes them.
    pub(super) fn leave_backing(&mut self) -> io::Result<()> {
        self.write_down(0)?;
        self.forget_all();
        self.wait_for_users();
        let top = &mut self.chain.0[0];
        let table = TableFile(top.file.clone());
        let mut start = top.file.buffer(SECTOR)?;
        table.read(start.as_mut(), 0)?;
        let sector = &mut start.as_mut().into_slice()[..];
        header::remove_backing(&mut sector[..SECTOR]);
        table.write(start.as_ref(), 0)?;
        top.file.sync_all_written()?;
        // imago writes the header as it has read it.
        if let Kind::Qcow2(mapped) = &mut top.kind {
            let header = header::Header { backing: None, ..mapped.header.clone() };
            **mapped = Mapped::open(&top.file, header)?;
        }
        self.chain.0.truncate(1);
        self.publish_files();
        Ok(())
    }
}
