// Not a core: does I/O or calls a hypervisor.

//! One image of a chain, and the chain: where a byte of the disk lies.

use super::chain::{OpenLayer, read_header};
use super::compressed;
use super::header::Header;
use super::image_file::ImageFile;
use super::image_format::Format;
use super::place::Place;
use super::reclaim::reclaim;
use super::table_file::TableFile;
use super::tables;
use crate::engine::base_cache::DiskCache;
use crate::engine::{OpenError, OpenImage};
use imago::format::drivers::FormatDriverInstance;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, ShallowMapping};
use std::io;
use std::sync::Arc;

/// `imago`'s image, without the one below it, which it knows nothing of.
pub(super) type Tables = Qcow2<TableFile, FormatAccess<TableFile>>;

/// An image of a chain.
pub(super) struct Layer {
    pub(super) file: Arc<ImageFile>,
    pub(super) kind: Kind,
}

/// How a layer maps its disk.
pub(super) enum Kind {
    /// The disk is the file, to its last whole sector.
    Raw,
    Qcow2(Box<Mapped>),
}

/// A qcow2 image.
pub(super) struct Mapped {
    pub(super) header: Header,
    pub(super) tables: Tables,
}

/// Where a range of the disk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// In a file of the layer with this index, from this byte on.
    At {
        layer: usize,
        offset: u64,
        writable: bool,
    },
    Zero,
    /// In a compressed cluster of a layer.
    Compressed {
        layer: usize,
    },
}

impl Mapped {
    /// # Errors
    /// The tables cannot be read.
    pub(super) fn open(file: &Arc<ImageFile>, header: Header) -> io::Result<Mapped> {
        let mut tables = Tables::open_image(TableFile(file.clone()), !file.is_read_only())?;
        tables.set_backing(None);
        tables.set_data_file(None);
        Ok(Mapped { header, tables })
    }
}

impl Layer {
    pub(super) fn raw(open: OpenImage, number: u8, cache: Option<&DiskCache>) -> io::Result<Layer> {
        let file = ImageFile::of_image(open, Format::Raw, number)?.with_cache(cache);
        Ok(Layer { file: Arc::new(file), kind: Kind::Raw })
    }

    /// A qcow2 image, of which `header` was read.
    ///
    /// # Errors
    /// Its tables cannot be read, or are not consistent.
    pub(super) fn qcow2(
        open: OpenImage,
        number: u8,
        header: Header,
        cache: Option<&DiskCache>,
    ) -> io::Result<Layer> {
        let file = ImageFile::of_image(open, Format::Qcow2, number)?;
        let file = Arc::new(file.with_compression(header.compression).with_cache(cache));
        if !file.is_read_only() {
            file.set_order(tables::load(&file, &header)?);
            reclaim(&file, header.cluster_size())?;
        }
        let kind = Kind::Qcow2(Box::new(Mapped::open(&file, header)?));
        Ok(Layer { file, kind })
    }

    /// An open image as a layer, whose file has this number, with a cache of what is read if there is one.
    ///
    /// # Errors
    /// [`OpenError::Format`] if it is not served, or not consistent; [`OpenError::Io`].
    pub(super) fn open(layer: OpenLayer, number: u8, cache: Option<&DiskCache>) -> Result<Layer, OpenError> {
        let path = layer.image.path().to_owned();
        let opened = match layer.format {
            Format::Raw => Layer::raw(layer.image, number, cache),
            Format::Qcow2 => {
                let header = read_header(&layer.image)?;
                Layer::qcow2(layer.image, number, header, cache)
            }
        };
        opened.map_err(|error| match error.raw_os_error() {
            Some(_) => OpenError::Io { path, source: error },
            None => OpenError::Format { path, what: error.to_string() },
        })
    }

    /// Bytes of the layer's disk.
    pub(super) fn size(&self) -> u64 {
        match &self.kind {
            Kind::Raw => self.file.length() / 512 * 512,
            Kind::Qcow2(mapped) => mapped.tables.size(),
        }
    }

    pub(super) fn mapped(&self) -> Option<&Mapped> {
        match &self.kind {
            Kind::Raw => None,
            Kind::Qcow2(mapped) => Some(mapped),
        }
    }

    /// How many of the `length` bytes of the file from `at` on may be data, as they are neither tables nor past the file's end.
    ///
    /// # Errors
    /// None may.
    fn checked(&self, mapped: &Mapped, offset: u64, at: u64, length: u64) -> io::Result<u64> {
        let cluster = mapped.header.cluster_size();
        // A file may end in the midst of its last cluster.
        let end = self.file.length().next_multiple_of(cluster);
        let first = at / cluster * cluster;
        let mut clusters = (first..at + length).step_by(cluster as usize);
        let is_table = |at: u64| self.file.with_order(|order| order.is_table(at)).unwrap_or(at < cluster);
        let bad = clusters.find(|at| *at >= end || is_table(*at));
        match bad {
            None => Ok(length),
            Some(bad) if bad > first => Ok(bad - at),
            Some(_) => {
                let place = if at >= end { "past the file's end" } else { "in a table" };
                let path = self.file.path().display();
                let what = format!("{path}: found byte {offset} of the disk {place}, at {at}");
                Err(io::Error::new(io::ErrorKind::InvalidData, what))
            }
        }
    }

    /// Where the disk's bytes from `offset` on lie; `None` if the next layer has them. Also how many it is true of.
    pub(super) fn find(&self, layer: usize, offset: u64, max: u64) -> io::Result<(Option<Found>, u64)> {
        let size = self.size();
        if offset >= size {
            // Past its end nothing of the layers below shows through.
            return Ok((Some(Found::Zero), max));
        }
        let max = max.min(size - offset);
        let Kind::Qcow2(mapped) = &self.kind else {
            return Ok((Some(Found::At { layer, offset, writable: false }), max));
        };
        let (mapping, mut length) = mapped.tables.get_mapping(offset, max)?;
        let found = match mapping {
            ShallowMapping::Raw { offset: at, writable, .. } => {
                length = self.checked(mapped, offset, at, length)?;
                Some(Found::At { layer, offset: at, writable })
            }
            ShallowMapping::Zero { explicit: true, .. } | ShallowMapping::Eof { .. } => Some(Found::Zero),
            ShallowMapping::Zero { explicit: false, .. } => None,
            ShallowMapping::Special { .. } => Some(Found::Compressed { layer }),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok((found, length.max(1).min(max)))
    }
}

/// The images of a disk, the one that is written first.
pub(super) struct Chain(pub(super) Vec<Layer>);

impl Chain {
    pub(super) fn top(&self) -> &Layer {
        &self.0[0]
    }

    /// Where the disk's bytes from `offset` on lie, in the layers from `first` on, of which none but that is written, and how many bytes it is
    /// true of, at most `max`.
    ///
    /// # Errors
    /// A table cannot be read, or is not consistent.
    pub(super) fn find(&self, first: usize, offset: u64, mut max: u64) -> io::Result<(Found, u64)> {
        for (number, layer) in self.0.iter().enumerate().skip(first) {
            let (found, length) = layer.find(number, offset, max)?;
            max = length;
            match found {
                Some(Found::At { layer, offset, writable }) => {
                    return Ok((Found::At { layer, offset, writable: writable && layer == first }, max));
                }
                Some(found) => return Ok((found, max)),
                None => {}
            }
        }
        Ok((Found::Zero, max))
    }

    /// Reads bytes of the disk, from the layers from `first` on.
    ///
    /// # Errors
    /// As [`Chain::find`]; a file cannot be read, or a cluster not be decompressed.
    pub(super) fn read(&self, first: usize, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !into.is_empty() {
            let (found, length) = self.find(first, offset, into.len() as u64)?;
            let (part, rest) = into.split_at_mut(length as usize);
            match found {
                Found::Zero => part.fill(0),
                Found::At { layer, offset, .. } => self.0[layer].file.read_data(part, offset)?,
                Found::Compressed { layer } => self.read_compressed(layer, part, offset)?,
            }
            into = rest;
            offset += length;
        }
        Ok(())
    }

    fn read_compressed(&self, layer: usize, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
        let Layer { file, kind: Kind::Qcow2(mapped), .. } = &self.0[layer] else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let size = mapped.header.cluster_size();
        while !into.is_empty() {
            let start = offset % size;
            let (part, rest) = into.split_at_mut((size - start).min(into.len() as u64) as usize);
            let cluster = compressed::read(file, &mapped.header, offset - start)?;
            part.copy_from_slice(&cluster[start as usize..start as usize + part.len()]);
            offset += part.len() as u64;
            into = rest;
        }
        Ok(())
    }

    /// The place of a unit for the threads of rings, given where its first byte lies and that all of it lies there.
    pub(super) fn place(&self, found: Found, unit_bytes: u64) -> Place {
        match found {
            Found::Zero => Place::Zero,
            Found::Compressed { .. } => Place::Slow,
            Found::At { layer, offset, writable } => {
                let file = &self.0[layer].file;
                let end = offset + unit_bytes;
                // A file may end in the midst of its last cluster, and the rest of it is zeroes.
                if end > file.length() && !(writable && file.extend(end).is_ok()) {
                    return Place::Slow;
                }
                Place::At { file: file.number(), offset, writable }
            }
        }
    }
}
