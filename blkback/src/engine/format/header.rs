//! The header of a qcow2 image (QEMU's docs/interop/qcow2.rst), parsed and checked: nothing is read by way of it that was not checked
//! here. What an image needs and is not served is refused by its name.

use std::fmt::Display;
use std::ops::Range;

/// Bytes from the file's start that [`Header::parse`] reads at most: a cluster of the usual size. Names and extensions lie there.
pub const HEADER_READ: usize = 64 << 10;

/// `QFI\xfb`.
pub(super) const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header of version 2, and at least of version 3.
pub(super) const V2_BYTES: usize = 72;
pub(super) const V3_BYTES: usize = 104;
/// The header extension of the backing file's format.
pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The header extension of the features' names: entries of 48 bytes.
const FEATURE_NAMES: u32 = 0x6803_f857;
/// Bytes of a backing file's name at most.
const MAX_NAME: u32 = 1023;
/// Bytes of an L1 table and of a refcount table at most, as QEMU has them (`QCOW_MAX_L1_SIZE`, `QCOW_MAX_REFTABLE_SIZE`).
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;

/// Bits of the incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
pub(super) const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Why an image is not served; it does not name the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {found}, expected {expected}")]
pub struct FormatError {
    found: String,
    expected: String,
}

impl FormatError {
    pub(super) fn new(found: impl Display, expected: impl Display) -> FormatError {
        FormatError { found: found.to_string(), expected: expected.to_string() }
    }
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Deflate (RFC 1951), without a header.
    Deflate,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// The image below an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name as recorded: a path, relative to the directory of the image that names it.
    pub name: String,
    /// Its format as recorded.
    pub format: Option<String>,
}

/// A header whose image can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has 2 to the power of this bytes: 9 to 21.
    pub cluster_bits: u32,
    /// Bytes of the guest's disk.
    pub size: u64,
    /// The image below this one.
    pub backing: Option<Backing>,
    /// Entries of the L1 table, of 8 bytes.
    pub l1_entries: u32,
    /// Where the L1 table starts in the file.
    pub l1_offset: u64,
    /// Where the refcount table starts in the file.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// A refcount has 2 to the power of this bits: 0 to 6.
    pub refcount_order: u32,
    /// Refcounts may be wrong.
    pub dirty: bool,
    /// Anything may be wrong.
    pub corrupt: bool,
    /// The bits of features that a writer clears which does not know them; bit 0 is QEMU's dirty bitmaps.
    pub autoclear: u64,
    /// The compatible feature of refcounts that are written late.
    pub lazy_refcounts: bool,
    /// How compressed clusters are compressed.
    pub compression: Compression,
}

/// A big-endian number in a file's first bytes; `None` past their end.
fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

impl Header {
    /// Parses the first [`HEADER_READ`] bytes of a file, or all if it is shorter, of `file_bytes` bytes.
    ///
    /// # Errors
    /// It is no qcow2 image, has a feature that is not served, or tables that cannot be.
    pub fn parse(start: &[u8], file_bytes: u64) -> Result<Header, FormatError> {
        let short = || FormatError::new(format!("{} bytes", start.len()), "a header of 72 bytes at least");
        let word = |at| be32(start, at).ok_or_else(short);
        let long = |at| be64(start, at).ok_or_else(short);
        if word(0)? != MAGIC {
            return Err(FormatError::new(
                format!("{:#010x}", word(0)?),
                "a qcow2 image, which starts with 0x514649fb",
            ));
        }
        let version = word(4)?;
        if !(2..=3).contains(&version) {
            return Err(FormatError::new(format!("version {version}"), "version 2 or 3"));
        }
        let cluster_bits = word(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(FormatError::new(format!("cluster_bits {cluster_bits}"), "9 to 21"));
        }
        let features = Features::parse(start, version)?;
        let mut header = Header {
            version,
            cluster_bits,
            size: long(24)?,
            backing: None,
            l1_entries: word(36)?,
            l1_offset: long(40)?,
            refcount_table_offset: long(48)?,
            refcount_table_clusters: word(56)?,
            refcount_order: features.refcount_order,
            dirty: features.incompatible & DIRTY != 0,
            corrupt: features.incompatible & CORRUPT != 0,
            autoclear: features.autoclear,
            lazy_refcounts: features.compatible & 1 != 0,
            compression: features.compression,
        };
        let crypt = word(32)?;
        if crypt != 0 {
            return Err(FormatError::new(format!("encryption (crypt_method {crypt})"), "no encryption"));
        }
        let snapshots = word(60)?;
        if snapshots != 0 {
            return Err(FormatError::new(
                format!("{snapshots} internal snapshots"),
                "none (snapshots are images of their own)",
            ));
        }
        header.check_tables(file_bytes)?;
        let format = features.extensions(start, cluster_bits)?;
        header.backing = backing(start, long(8)?, word(16)?, cluster_bits, format)?;
        Ok(header)
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the refcount table.
    pub fn refcount_table_bytes(&self) -> u64 {
        u64::from(self.refcount_table_clusters) << self.cluster_bits
    }

    /// Checks that the image may be written.
    ///
    /// # Errors
    /// It says that it is not consistent.
    pub fn check_writable(&self) -> Result<(), FormatError> {
        const REPAIR: &str = "a consistent image, or mode r (qemu-img check -r all repairs one)";
        match (self.corrupt, self.dirty) {
            (true, _) => Err(FormatError::new("the feature bit \"corrupt\"", REPAIR)),
            (_, true) => Err(FormatError::new("the feature bit \"dirty\"", REPAIR)),
            _ => Ok(()),
        }
    }

    fn check_tables(&self, file_bytes: u64) -> Result<(), FormatError> {
        let cluster = self.cluster_size();
        if self.size > i64::MAX as u64 / 2 {
            return Err(FormatError::new(format!("a disk of {} bytes", self.size), "2^62 at most"));
        }
        // An L2 table has a cluster of entries of 8 bytes.
        let per_entry = cluster * (cluster / 8);
        let needed = self.size.div_ceil(per_entry);
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if u64::from(self.l1_entries) < needed || l1_bytes > MAX_L1 {
            let expected = format!("{needed} at least, for {} bytes, and {} at most", self.size, MAX_L1 / 8);
            return Err(FormatError::new(format!("an L1 table of {} entries", self.l1_entries), expected));
        }
        let refcount_bytes = self.refcount_table_bytes();
        if refcount_bytes == 0 || refcount_bytes > MAX_REFCOUNT_TABLE {
            let found = format!("a refcount table of {} clusters", self.refcount_table_clusters);
            return Err(FormatError::new(
                found,
                format!("1 at least, and {MAX_REFCOUNT_TABLE} bytes at most"),
            ));
        }
        let tables =
            [("L1", self.l1_offset, l1_bytes), ("refcount", self.refcount_table_offset, refcount_bytes)];
        for (name, offset, bytes) in tables.into_iter().filter(|(_, _, bytes)| *bytes > 0) {
            let inside = offset.checked_add(bytes).is_some_and(|_| offset < file_bytes);
            if offset % cluster != 0 || offset < cluster || !inside {
                let found = format!("the {name} table at {offset}");
                let expected =
                    format!("a multiple of {cluster}, from there to the file's end at {file_bytes}");
                return Err(FormatError::new(found, expected));
            }
        }
        let [(_, l1, l1_bytes), (_, refcounts, refcount_bytes)] = tables;
        if l1_bytes > 0 && l1 < refcounts + refcount_bytes && refcounts < l1 + l1_bytes {
            return Err(FormatError::new(
                format!("the L1 table at {l1} in the refcount table"),
                "two tables apart",
            ));
        }
        Ok(())
    }
}

/// What version 3 adds to a header.
struct Features {
    incompatible: u64,
    compatible: u64,
    autoclear: u64,
    refcount_order: u32,
    compression: Compression,
    /// Where the extensions start.
    header_bytes: usize,
}

impl Features {
    fn parse(start: &[u8], version: u32) -> Result<Features, FormatError> {
        if version == 2 {
            let compression = Compression::Deflate;
            return Ok(Features {
                incompatible: 0,
                compatible: 0,
                autoclear: 0,
                refcount_order: 4,
                compression,
                header_bytes: V2_BYTES,
            });
        }
        let short = || FormatError::new(format!("{} bytes", start.len()), "a header of 104 bytes at least");
        let incompatible = be64(start, 72).ok_or_else(short)?;
        let compatible = be64(start, 80).ok_or_else(short)?;
        let autoclear = be64(start, 88).ok_or_else(short)?;
        let refcount_order = be32(start, 96).ok_or_else(short)?;
        let header_bytes = be32(start, 100).ok_or_else(short)? as usize;
        if refcount_order > 6 {
            return Err(FormatError::new(format!("refcount_order {refcount_order}"), "6 at most"));
        }
        if header_bytes < V3_BYTES || !header_bytes.is_multiple_of(8) || header_bytes > start.len() {
            let expected = format!("a multiple of 8 from {V3_BYTES} on, inside of the first cluster");
            return Err(FormatError::new(format!("header_length {header_bytes}"), expected));
        }
        let name = match incompatible & !(DIRTY | CORRUPT | COMPRESSION) {
            0 => None,
            bits if bits & DATA_FILE != 0 => Some("an external data file".to_owned()),
            bits if bits & EXTENDED_L2 != 0 => Some("extended L2 entries (subclusters)".to_owned()),
            bits => Some(format!("the unknown incompatible feature bit {}", bits.trailing_zeros())),
        };
        if let Some(name) = name {
            return Err(FormatError::new(name, "an image without"));
        }
        let kind = start.get(104).copied().filter(|_| header_bytes > 104).unwrap_or(0);
        let compression = match (incompatible & COMPRESSION != 0, kind) {
            (false, 0) => Compression::Deflate,
            (true, 1) => Compression::Zstd,
            (_, kind) => {
                return Err(FormatError::new(
                    format!("compression_type {kind}"),
                    "0 (zlib), or 1 (zstd) with its feature bit",
                ));
            }
        };
        Ok(Features { incompatible, compatible, autoclear, refcount_order, compression, header_bytes })
    }

    /// Walks the header extensions; returns the backing file's format.
    fn extensions(&self, start: &[u8], cluster_bits: u32) -> Result<Option<String>, FormatError> {
        let first_cluster = &start[..start.len().min(1 << cluster_bits)];
        let mut at = self.header_bytes;
        let mut format = None;
        loop {
            let (Some(kind), Some(bytes)) = (be32(first_cluster, at), be32(first_cluster, at + 4)) else {
                // Of version 2 the end need not be marked.
                return match self.header_bytes {
                    V2_BYTES => Ok(format),
                    _ => Err(FormatError::new(
                        "header extensions without an end",
                        "one inside of the first cluster",
                    )),
                };
            };
            if kind == 0 {
                return Ok(format);
            }
            let bytes = bytes as usize;
            let Some(data) = at.checked_add(8 + bytes).and_then(|end| first_cluster.get(at + 8..end)) else {
                let expected = "one that ends inside of the first cluster";
                return Err(FormatError::new(
                    format!("the header extension {kind:#x} of {bytes} bytes"),
                    expected,
                ));
            };
            if kind == FEATURE_NAMES && !bytes.is_multiple_of(48) {
                return Err(FormatError::new(
                    format!("a feature name table of {bytes} bytes"),
                    "a multiple of 48",
                ));
            }
            if kind == BACKING_FORMAT {
                let found = std::str::from_utf8(data)
                    .map_err(|_| FormatError::new("a backing format that is no text", "raw or qcow2"))?;
                if format.as_ref().is_some_and(|other| other != found) {
                    return Err(FormatError::new(format!("the second backing format {found:?}"), "one"));
                }
                format = Some(found.to_owned());
            }
            at += 8 + bytes.next_multiple_of(8);
        }
    }
}

/// Removes the image below from a header that was parsed, given the file's first bytes: its name, and its format where all header extensions
/// are in these bytes. An image without the one has no use for the other.
pub(super) fn remove_backing(start: &mut [u8]) {
    if start.len() < V2_BYTES {
        return;
    }
    start[8..20].fill(0);
    let header_bytes =
        if be32(start, 4) == Some(2) { V2_BYTES as u32 } else { be32(start, 100).unwrap_or(0) };
    let mut at = header_bytes as usize;
    let mut format = None;
    while let (Some(kind), Some(bytes)) = (be32(start, at), be32(start, at + 4)) {
        let next = at + 8 + (bytes as usize).next_multiple_of(8);
        match (kind, &format) {
            (0, Some(Range { start: from, end: to })) => {
                start.copy_within(*to..at, *from);
                start[at - (to - from)..at].fill(0);
                return;
            }
            (0, None) => return,
            (BACKING_FORMAT, None) => format = Some(at..next),
            _ => {}
        }
        at = next;
    }
}

fn backing(
    start: &[u8],
    offset: u64,
    bytes: u32,
    cluster_bits: u32,
    format: Option<String>,
) -> Result<Option<Backing>, FormatError> {
    if offset == 0 {
        return Ok(None);
    }
    if bytes == 0 || bytes > MAX_NAME {
        return Err(FormatError::new(
            format!("a backing file's name of {bytes} bytes"),
            format!("1 to {MAX_NAME}"),
        ));
    }
    let first_cluster = &start[..start.len().min(1 << cluster_bits)];
    let name =
        usize::try_from(offset).ok().and_then(|at| first_cluster.get(at..at.checked_add(bytes as usize)?));
    let Some(name) = name else {
        return Err(FormatError::new(
            format!("a backing file's name at {offset}"),
            "one inside of the first cluster",
        ));
    };
    match std::str::from_utf8(name) {
        Ok(name) if !name.contains('\0') => Ok(Some(Backing { name: name.to_owned(), format })),
        _ => Err(FormatError::new(
            "a backing file's name that is no text",
            "a path in UTF-8, without a zero byte",
        )),
    }
}

#[cfg(test)]
mod tests;
