// Not a core: does I/O or calls a hypervisor.

//! The tables of an image's file as `imago` reads and writes them: written in the order that `order` says, refcounts ahead of it
//! (`ahead`), and of each table what has changed.
#![allow(unsafe_code)] // imago's interface of a file has unsafe functions to implement.

use super::header::COMPRESSION;
use super::image_file::ImageFile;
use super::in_file::InFile;
use super::order::Kind;
use super::refcounts;
use crate::engine::done::lock;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageExt};
use nix::errno::Errno;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// The byte of a header with the feature bit of the compression, which `imago` does not know: it neither sees nor changes it.
const FEATURE_BYTE: u64 = 79;
/// Of a table that has changed, what is written is a multiple of this where its clusters are: less than a file system's block costs more.
const UNIT: usize = 4096;

impl ImageFile {
    /// Reads data; past the file's end it is zeroes.
    pub(super) fn read_data(self: &Arc<Self>, into: &mut [u8], offset: u64) -> io::Result<()> {
        if offset >= self.length() {
            into.fill(0);
            return Ok(());
        }
        TableFile(self.clone()).read(into, offset)
    }

    /// Raises refcounts ahead of allocations from now on, if the file can be made longer.
    pub(super) fn start_ahead(&self) {
        if self.is_regular() && !self.is_read_only() {
            lock(&self.in_file).ahead.start();
        }
    }

    /// Has the file as `imago` has it: without refcounts that were raised ahead, and no longer than it is used. Everything that `imago` has is
    /// written.
    pub(super) fn stop_ahead(&self) -> io::Result<()> {
        let blocks = lock(&self.in_file).ahead.stop();
        let layout = self.with_order(|order| order.layout());
        for (block, layout) in blocks.into_iter().zip(std::iter::repeat(layout).flatten()) {
            let mut buffer = self.buffer(layout.cluster as usize)?;
            let bytes = buffer.as_mut().into_slice();
            self.read_into(bytes, block)?;
            lock(&self.in_file).ahead.hide(block, bytes, layout);
            self.write_changed(bytes, block)?;
            lock(&self.in_file).ahead.lowered(block);
        }
        self.trim()
    }

    /// Has a refcount block that was read be as `imago` has it.
    fn hide_ahead(&self, bytes: &mut [u8], offset: u64) {
        let layout = self.with_order(|order| order.layout());
        if let Some(layout) = layout.filter(|layout| layout.cluster == bytes.len() as u64) {
            lock(&self.in_file).ahead.hide(offset, bytes, layout);
        }
    }

    /// The feature byte in a part of the file, if it is there and to be hidden.
    fn feature_byte<'b>(&self, bytes: &'b mut [u8], offset: u64) -> Option<&'b mut u8> {
        let at = FEATURE_BYTE.checked_sub(offset).filter(|_| self.hides_compression())?;
        bytes.get_mut(usize::try_from(at).ok()?)
    }

    fn write_table(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let range = offset..offset + bytes.len() as u64;
        let named = self.with_order(|order| order.named_anew(&range, bytes)).unwrap_or_default();
        named.into_iter().try_for_each(|cluster| self.count(cluster))?;
        match self.with_order(|order| order.kind(&range)) {
            Some(Kind::RefcountBlock) => self.write_block(bytes, offset),
            Some(Kind::Table) => self.write_changed(bytes, offset),
            Some(Kind::Root) | None => {
                lock(&self.in_file).forget(&range);
                self.write_in_order(bytes, offset, &(0..bytes.len()))
            }
        }
    }

    /// Writes a refcount block that `imago` has.
    fn write_block(&self, exact: &[u8], offset: u64) -> io::Result<()> {
        let Some((layout, first)) =
            self.with_order(|order| Some((order.layout(), order.first_of_block(offset)?))).flatten()
        else {
            return self.write_changed(exact, offset);
        };
        let mut buffer = self.buffer(exact.len())?;
        let bytes = &mut buffer.as_mut().into_slice()[..exact.len()];
        bytes.copy_from_slice(exact);
        let raised = {
            let InFile { ahead, written } = &mut *lock(&self.in_file);
            ahead.raise(offset, bytes, written.get(offset), layout)
        };
        if !raised.is_empty() {
            self.reserve((first + raised.end) * layout.cluster);
        }
        self.write_changed(bytes, offset)
    }

    /// Writes what the file does not have yet of a table that is a cluster.
    pub(super) fn write_changed(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let unit = UNIT.max(self.align()).min(bytes.len());
        let changed = lock(&self.in_file).written.changed(offset, bytes, unit);
        if changed.is_empty() {
            return Ok(());
        }
        let outcome = self.write_in_order(bytes, offset, &changed);
        let written = &mut lock(&self.in_file).written;
        match &outcome {
            Ok(()) => written.wrote(offset, bytes),
            Err(_) => written.forget(&(offset..offset + 1)),
        }
        outcome
    }

    /// Writes a part of a table once the medium has what it has to have before.
    fn write_in_order(&self, bytes: &[u8], offset: u64, part: &Range<usize>) -> io::Result<()> {
        let range = offset..offset + bytes.len() as u64;
        if self.with_order(|order| order.needs_sync(&range)).unwrap_or(false) {
            self.sync_all_written()?;
        }
        if self.has_failed() {
            return Err(Errno::EIO.into());
        }
        self.write_at(&bytes[part.clone()], offset + part.start as u64)?;
        self.with_order(|order| order.wrote(&range, bytes));
        Ok(())
    }

    /// Enters a refcount of 1 for a table's cluster that has 0 in the file. `imago`, which has allocated it, enters the same later.
    fn count(&self, cluster: u64) -> io::Result<()> {
        let counter = self.with_order(|order| Some((order.counter(cluster)?, order.cluster()))).flatten();
        let Some(((entry, index, bits), size)) = counter else { return Ok(()) };
        let unit = self.align().max(512) as u64;
        let mut part = self.buffer(unit as usize)?;
        let part = part.as_mut().into_slice();
        self.read_into(part, entry / unit * unit)?;
        let at = (entry % unit) as usize;
        let block = u64::from_be_bytes(part[at..at + 8].try_into().unwrap_or_default()) & !511;
        // A block that is about to be entered counts itself.
        if block == 0 {
            return Ok(());
        }
        let mut buffer = self.buffer(size as usize)?;
        let counts = buffer.as_mut().into_slice();
        self.read_into(counts, block)?;
        if refcounts::is_zero(counts, index, bits) {
            refcounts::set_one(counts, index, bits);
            self.write_changed(counts, block)?;
        }
        Ok(())
    }
}

/// A file as `imago` has it.
#[derive(Clone, Debug)]
pub(super) struct TableFile(pub(super) Arc<ImageFile>);

impl fmt::Display for TableFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.path().display().fmt(f)
    }
}

impl Storage for TableFile {
    fn mem_align(&self) -> usize {
        self.0.align()
    }

    fn req_align(&self) -> usize {
        self.0.align()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.length())
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        if offset >= self.0.length() {
            let what = format!(
                "found a table at {offset}, expected one before the file's end at {}",
                self.0.length()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        for mut part in bufv.into_inner() {
            self.0.read_into(&mut part, offset)?;
            if let Some(byte) = self.0.feature_byte(&mut part, offset) {
                *byte &= !(COMPRESSION as u8);
            }
            self.0.hide_ahead(&mut part, offset);
            offset += part.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let len = usize::try_from(bufv.len()).map_err(io::Error::other)?;
        let hides_nothing = !self.0.hides_compression() || offset > FEATURE_BYTE;
        let parts = bufv.into_inner();
        if let ([part], true) = (&parts[..], hides_nothing) {
            return self.0.write_table(part, offset);
        }
        let bufv = IoVector::from(parts);
        let mut buffer = self.0.buffer(len)?;
        let bytes = &mut buffer.as_mut().into_slice()[..len];
        bufv.copy_into_slice(bytes);
        if let Some(byte) = self.0.feature_byte(bytes, offset) {
            *byte |= COMPRESSION as u8;
        }
        self.0.write_table(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all_written()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.0.helper()
    }

    fn resize(&self, _: u64, _: PreallocateMode) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
