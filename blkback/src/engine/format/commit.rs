// Not a core: does I/O or calls a hypervisor.

//! Moves what the guest's own image has into the one below, in slices between the guest's operations. A slice is withdrawn from the rings,
//! copied down, and left by the guest's own image once the medium of the one below has it: at every moment both together are the disk.
//! What the guest writes behind the slices is in its own image again.

use super::jobs::{LOOKS, SLICE, refused};
use super::layer::{Found, Kind};
use super::worker::{PART, Worker};
use super::writes::{Data, reads_zero};
use nix::errno::Errno;
use std::io;
use std::ops::Range;

/// A part of the disk that the guest's own image has.
struct Owned {
    range: Range<u64>,
    /// It reads as zeroes.
    is_zero: bool,
}

impl Worker {
    /// Checks that the image below can take everything, and makes it as long as the disk.
    pub(super) fn begin_commit(&mut self) -> io::Result<()> {
        let (size, below) = (self.size(), &self.chain.0[1]);
        if below.file.is_read_only() {
            return Err(Errno::EROFS.into());
        }
        let align = below.file.align() as u64;
        if !size.is_multiple_of(align) {
            return Err(refused(
                format!("a disk of {size} bytes over one with sectors of {align}"),
                "whole sectors",
            ));
        }
        let old = below.size();
        if old >= size {
            return Ok(());
        }
        if self.chain.0[2..].iter().any(|layer| layer.size() > old) {
            let found = format!("a backing file of {old} bytes between two longer images");
            return Err(refused(found, "one that may become as long as the disk"));
        }
        match below.kind {
            Kind::Qcow2(_) => self.grow(1, size),
            Kind::Raw if below.file.file().metadata()?.is_file() => {
                // A last part of a sector was never of the disk.
                below.file.file().set_len(old)?;
                below.file.extend(size)?;
                below.file.sync_all_written()
            }
            Kind::Raw => Err(refused(format!("a backing device of {old} bytes"), format!("{size} at least"))),
        }
    }

    /// Moves what is found from a byte of the disk on; moves the byte on.
    pub(super) fn commit_slice(&mut self, at: &mut u64) -> io::Result<()> {
        let owned = self.owned(at)?;
        let (Some(first), Some(last)) = (owned.first(), owned.last()) else { return Ok(()) };
        // Nothing is answered that is moved now. What is below may have larger clusters, which are moved as a whole.
        self.answer();
        let cluster = self.mapped_at(1).map_or(1, |mapped| mapped.header.cluster_size());
        let end = last.range.end.next_multiple_of(cluster).min(self.size());
        self.withdraw(&(first.range.start / cluster * cluster..end));
        for part in &owned {
            match part.is_zero {
                true => self.zero_below(part.range.clone())?,
                false => self.copy_down(part.range.clone())?,
            }
        }
        self.write_down(1)?;
        self.release(0, owned.into_iter().map(|part| part.range), false)
    }

    /// What the guest's own image has from a byte of the disk on, of a slice at most; moves the byte on.
    fn owned(&self, at: &mut u64) -> io::Result<Vec<Owned>> {
        let size = self.size();
        let (mut left, mut looks) = (SLICE, LOOKS);
        let mut owned: Vec<Owned> = Vec::new();
        while *at < size && left > 0 && looks > 0 {
            looks -= 1;
            let (found, length) = self.chain.top().find(0, *at, (size - *at).min(left))?;
            let range = *at..*at + length;
            *at = range.end;
            let is_zero = match found {
                None => continue,
                Some(Found::Zero) => true,
                Some(Found::At { .. } | Found::Compressed { .. }) => false,
            };
            if !is_zero {
                left = left.saturating_sub(length);
            }
            match owned.last_mut() {
                Some(last) if last.range.end == range.start && last.is_zero == is_zero => {
                    last.range.end = range.end;
                }
                _ => owned.push(Owned { range, is_zero }),
            }
        }
        Ok(owned)
    }

    fn copy_down(&mut self, range: Range<u64>) -> io::Result<()> {
        let file = self.chain.0[1].file.clone();
        let length = (range.end - range.start) as usize;
        let mut buffer = file.buffer(length)?;
        let bytes = &mut buffer.as_mut().into_slice()[..length];
        self.chain.read(0, bytes, range.start)?;
        match self.chain.0[1].kind {
            Kind::Raw => file.write_data(bytes, range.start),
            Kind::Qcow2(_) => self.write_data(1, &Data::Bytes(bytes, range.start), range),
        }
    }

    /// Has a range read as zeroes in the image below.
    fn zero_below(&mut self, range: Range<u64>) -> io::Result<()> {
        if reads_zero(&self.chain, 1, &range)? {
            return Ok(());
        }
        let has_backing = self.chain.0.len() > 2;
        let Ok(mapped) = self.mapped_at(1) else { return self.zero_raw(range) };
        let (version, cluster) = (mapped.header.version, mapped.header.cluster_size());
        let start = range.start.next_multiple_of(cluster);
        let is_to_end = range.end == self.chain.0[1].size();
        let end = if is_to_end { range.end } else { range.end / cluster * cluster };
        // Version 2 has no cluster of zeroes.
        if start >= end || (version < 3 && has_backing) {
            return self.write_data(1, &Data::Zeroes, range);
        }
        self.write_data(1, &Data::Zeroes, range.start..start)?;
        self.write_data(1, &Data::Zeroes, end..range.end)?;
        self.release(1, std::iter::once(start..end), has_backing)
    }

    fn zero_raw(&self, range: Range<u64>) -> io::Result<()> {
        let file = &self.chain.0[1].file;
        if file.punch(range.start, range.end - range.start) {
            return Ok(());
        }
        let mut buffer = file.buffer(PART.min(range.end - range.start) as usize)?;
        buffer.as_mut().into_slice().fill(0);
        for at in range.clone().step_by(PART as usize) {
            let bytes = (range.end - at).min(PART) as usize;
            file.write_data(&buffer.as_ref().into_slice()[..bytes], at)?;
        }
        Ok(())
    }

    /// Frees whole clusters of the image with so many above it, and enters them as zeroes or as not allocated. They become holes once the
    /// medium no longer has them in the tables: until then a power cut brings back what they hold.
    fn release(
        &mut self,
        layer: usize,
        ranges: impl Iterator<Item = Range<u64>>,
        as_zeroes: bool,
    ) -> io::Result<()> {
        let file = self.chain.0[layer].file.clone();
        file.with_order(|order| order.set_freed(true));
        let mut holes = Vec::new();
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let (found, length) = self.chain.0[layer].find(layer, at, range.end - at)?;
                if let Some(Found::At { offset, writable: true, .. }) = found {
                    holes.push((offset, length));
                }
                if found.is_some() || as_zeroes {
                    self.clear(layer, at..at + length, as_zeroes)?;
                }
                at += length;
            }
        }
        self.write_down(layer)?;
        file.with_order(|order| order.set_freed(false));
        for (offset, length) in holes {
            file.punch(offset, length);
        }
        Ok(())
    }
}
