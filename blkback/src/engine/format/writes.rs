// Not a core: does I/O or calls a hypervisor.

//! Writes that allocate clusters, and what frees them. The data is in its cluster before the table names it: a cluster is prepared, written,
//! and entered.
#![allow(unsafe_code)] // imago frees what its caller says is not used.

use super::layer::{Chain, Found};
use super::worker::{PART, Worker};
use crate::engine::IoRequest;
use imago::format::drivers::FormatDriverInstance;
use nix::errno::Errno;
use std::io;
use std::ops::Range;

/// What is written, with where it starts on the disk: a guest's pages, bytes, or zeroes.
pub(super) enum Data<'d> {
    Request(&'d IoRequest, u64),
    Bytes(&'d [u8], u64),
    Zeroes,
}

impl Data<'_> {
    /// Copies the bytes from an offset of the disk on.
    fn copy(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let (request, start) = match self {
            Data::Request(request, start) => (request, start),
            Data::Bytes(bytes, start) => {
                let from = (offset - start) as usize;
                into.copy_from_slice(bytes.get(from..from + into.len()).ok_or(Errno::EFAULT)?);
                return Ok(());
            }
            Data::Zeroes => {
                into.fill(0);
                return Ok(());
            }
        };
        let (mut skip, mut rest) = ((offset - start) as usize, into);
        for slice in request.slices() {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let slice = slice.offset(skipped).map_err(io::Error::other)?;
            let (part, more) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.subslice(0, part.len()).map_err(io::Error::other)?.copy_to(part);
            rest = more;
        }
        if rest.is_empty() { Ok(()) } else { Err(Errno::EFAULT.into()) }
    }
}

impl Worker {
    /// Writes for a ring.
    ///
    /// # Errors
    /// There is no space, the file cannot be written, or the tables are not consistent.
    pub(super) fn write(&mut self, request: &IoRequest, range: Range<u64>) -> io::Result<()> {
        self.write_data(0, &Data::Request(request, range.start), range)
    }

    /// Writes to the qcow2 image with so many above it.
    ///
    /// # Errors
    /// As [`Worker::write`].
    pub(super) fn write_data(&mut self, layer: usize, data: &Data<'_>, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let (found, length) = self.chain.find(layer, at, (range.end - at).min(PART))?;
            at += match found {
                Found::At { offset, writable: true, .. } => {
                    let file = &self.chain.0[layer].file;
                    let mut buffer = file.buffer(length as usize)?;
                    let bytes = &mut buffer.as_mut().into_slice()[..length as usize];
                    data.copy(at, bytes)?;
                    file.write_data(bytes, offset)?;
                    length
                }
                _ => self.allocate(layer, data, at..range.end)?,
            };
        }
        Ok(())
    }

    /// Allocates clusters for the start of a range, whose first cluster is not written in place, and writes them. Returns how many bytes
    /// of the range it was.
    fn allocate(&mut self, layer: usize, data: &Data<'_>, range: Range<u64>) -> io::Result<u64> {
        self.settle(layer)?;
        let cluster = self.mapped_at(layer)?.header.cluster_size();
        let size = self.chain.0[layer].size();
        let start = range.start / cluster * cluster;
        let (most, frees) = self.clusters_to_allocate(layer, start, &range)?;
        // What of the first and the last cluster is not written keeps what it has.
        let head = start..range.start;
        let tail = range.end.min(most)..most.min(size);
        let was_zero = reads_zero(&self.chain, layer, &(start..most.min(size)))?;
        let is_zero =
            was_zero || reads_zero(&self.chain, layer, &head)? && reads_zero(&self.chain, layer, &tail)?;
        let chain = &self.chain;
        let mapped = self.mapped_at(layer)?;
        let file = &chain.0[layer].file;
        let prepared = mapped.tables.prepare_data_mapping(start, most.min(size) - start, true)?;
        let (host, end) = (prepared.offset(), start + prepared.length());
        let written = range.start..range.end.min(end);
        // Past the file's end there are zeroes already.
        if is_zero && host >= file.length() {
            let mut buffer = file.buffer((written.end - written.start) as usize)?;
            let bytes = &mut buffer.as_mut().into_slice()[..(written.end - written.start) as usize];
            data.copy(written.start, bytes)?;
            let at = host + (written.start - start);
            match was_zero && file.is_fresh(&(host..host + (end - start).next_multiple_of(cluster))) {
                // Should the table reach the medium before the data, its sectors are still what they were.
                true => file.write_fresh(bytes, at)?,
                false => file.write_data(bytes, at)?,
            }
        } else {
            // The rest of the disk's last cluster is zeroes for when it becomes longer.
            let whole = (end - start).next_multiple_of(cluster);
            let mut buffer = file.buffer(whole as usize)?;
            let bytes = &mut buffer.as_mut().into_slice()[..whole as usize];
            bytes[(end - start) as usize..].fill(0);
            chain.read(layer, &mut bytes[..(head.end - start) as usize], start)?;
            let (from, to) = ((written.start - start) as usize, (written.end - start) as usize);
            data.copy(written.start, &mut bytes[from..to])?;
            chain.read(layer, &mut bytes[to..(end - start) as usize], written.end)?;
            file.write_data(bytes, host)?;
        }
        let host_end = host + (end - start).next_multiple_of(cluster);
        file.extend(host_end)?;
        file.with_order(|order| {
            (host..host_end).step_by(cluster as usize).for_each(|at| order.is_data(at));
            if frees {
                // A compressed cluster that is replaced is free.
                order.set_freed(true);
            }
        });
        mapped.tables.commit_data_mapping(prepared)?;
        if layer == 0 {
            self.note_moved(start..end, host);
            self.changed = true;
        }
        Ok(written.end - written.start)
    }

    /// The end of the clusters from `start` on that are not written in place, up to the end of a range or [`PART`], and whether one of
    /// them is compressed.
    fn clusters_to_allocate(&self, layer: usize, start: u64, range: &Range<u64>) -> io::Result<(u64, bool)> {
        let cluster = self.mapped_at(layer)?.header.cluster_size();
        let most = (start + PART.max(cluster)).min(range.end.next_multiple_of(cluster));
        let (mut end, mut frees) = (start, false);
        while end < most {
            match self.chain.find(layer, end, cluster)?.0 {
                Found::At { writable: true, .. } => break,
                Found::Compressed { layer: of } | Found::At { layer: of, .. } => frees |= of == layer,
                Found::Zero => {}
            }
            end += cluster;
        }
        Ok((end.max(start + cluster), frees))
    }

    /// Has the medium know of what was freed, before it is used again.
    fn settle(&mut self, layer: usize) -> io::Result<()> {
        if self.chain.0[layer].file.with_order(|order| order.has_freed()) != Some(true) {
            return Ok(());
        }
        self.write_down(layer)?;
        self.chain.0[layer].file.with_order(|order| order.set_freed(false));
        Ok(())
    }

    /// Has the medium know all that was written to the image with so many above it.
    pub(super) fn write_down(&mut self, layer: usize) -> io::Result<()> {
        if layer == 0 {
            self.changed = true;
            self.write_tables()?;
        } else if let Ok(mapped) = self.mapped_at(layer) {
            mapped.tables.flush()?;
        }
        self.chain.0[layer].file.sync_all_written()
    }

    /// Notes where a range is once the tables are written.
    fn note_moved(&mut self, range: Range<u64>, host: u64) {
        let (bits, size) = (self.image.unit_bits, self.size());
        let number = self.chain.top().file.number();
        let first = range.start.next_multiple_of(1 << bits) >> bits;
        for unit in first..range.end.div_ceil(1 << bits) {
            if (unit + 1) << bits <= range.end || range.end == size {
                let offset = host + ((unit << bits) - range.start);
                self.moved.push((unit, super::place::Place::At { file: number, offset, writable: true }));
            }
        }
    }

    /// Makes a range read as zeroes and take no space; if it is not `wanted` to read so, what is no whole cluster of it stays.
    ///
    /// # Errors
    /// As [`Worker::write`].
    pub(super) fn discard(&mut self, range: Range<u64>, wanted: bool) -> io::Result<()> {
        // Nothing is answered that is undone now.
        self.answer();
        let (version, cluster) = (self.mapped()?.header.version, self.mapped()?.header.cluster_size());
        let has_backing = self.chain.0.len() > 1;
        let start = range.start.next_multiple_of(cluster);
        let end = if range.end == self.size() { range.end } else { range.end / cluster * cluster };
        // Version 2 has no cluster of zeroes: over a backing image one cannot be taken away.
        if start >= end || (version < 3 && has_backing) {
            return if wanted { self.write_data(0, &Data::Zeroes, range) } else { Ok(()) };
        }
        if wanted {
            self.write_data(0, &Data::Zeroes, range.start..start)?;
            self.write_data(0, &Data::Zeroes, end..range.end)?;
            self.answer();
        }
        self.withdraw(&(start..end));
        self.free(start..end, has_backing)
    }

    /// Frees whole clusters.
    fn free(&mut self, range: Range<u64>, has_backing: bool) -> io::Result<()> {
        self.changed = true;
        let file = self.chain.top().file.clone();
        file.with_order(|order| order.set_freed(true));
        let mut at = range.start;
        while at < range.end {
            let (found, length) = self.chain.find(0, at, range.end - at)?;
            if let Found::At { layer: 0, offset, writable: true } = found {
                self.clear(0, at..at + length, has_backing)?;
                // The cluster is used again only once the medium knows that it is free: until then it reads as zeroes.
                // Nothing depends on it: what the cluster holds is nobody's.
                file.punch(offset, length);
            } else if found != Found::Zero || has_backing {
                self.clear(0, at..at + length, has_backing)?;
            }
            at += length;
        }
        Ok(())
    }

    /// Enters whole clusters as zeroes, or as not allocated.
    pub(super) fn clear(&self, layer: usize, range: Range<u64>, as_zeroes: bool) -> io::Result<()> {
        let mapped = self.mapped_at(layer)?;
        let (cluster, size) = (mapped.header.cluster_size(), self.chain.0[layer].size());
        // Where the range was found by units of other layers, it is of this one's clusters all the same.
        let end = if range.end == size { range.end } else { range.end.next_multiple_of(cluster).min(size) };
        let mut at = range.start / cluster * cluster;
        while at < end {
            // SAFETY: nobody uses where the range was: `withdraw` has waited for that.
            let (start, length) = unsafe {
                match as_zeroes {
                    true => mapped.tables.discard_to_zero_unsafe(at, end - at)?,
                    false => mapped.tables.discard_to_backing_unsafe(at, end - at)?,
                }
            };
            if length == 0 {
                break;
            }
            at = start + length;
        }
        Ok(())
    }
}

/// Whether a range of the disk reads as zeroes in the layers from one on, without being read.
pub(super) fn reads_zero(chain: &Chain, layer: usize, range: &Range<u64>) -> io::Result<bool> {
    let mut at = range.start;
    while at < range.end {
        let (found, length) = chain.find(layer, at, range.end - at)?;
        if found != Found::Zero {
            return Ok(false);
        }
        at += length;
    }
    Ok(true)
}
