// Not a core: does I/O or calls a hypervisor.

//! Compressed clusters, which are read alone: a write makes an ordinary cluster of one.

use super::header::{Compression, Header};
use super::image_file::ImageFile;
use super::tables;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use std::io::{self, Read};
use std::sync::Arc;

/// The bit of an L2 entry of a compressed cluster.
pub(super) const COMPRESSED: u64 = 1 << 62;

/// Where the bytes of a compressed cluster are in the file, and at most how many: "Compressed Clusters Descriptor" of qcow2.rst.
pub(super) fn extent(entry: u64, cluster_bits: u32) -> (u64, u64) {
    let bits = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << bits) - 1);
    let sectors = (entry & !(COMPRESSED | 1 << 63)) >> bits;
    (offset, (sectors + 1) * 512 - offset % 512)
}

/// Reads the compressed cluster at a guest's offset, which is its first byte.
///
/// # Errors
/// The file cannot be read, or what is there is no compressed cluster.
pub(super) fn read(file: &Arc<ImageFile>, header: &Header, offset: u64) -> io::Result<Vec<u8>> {
    let entry = tables::l2_entry(file, header, offset)?;
    let invalid = |what: &str| {
        let what =
            format!("{}: the compressed cluster at {offset} of the disk: {what}", file.path().display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    if entry & COMPRESSED == 0 {
        return Err(invalid("it is none any more"));
    }
    let (at, bytes) = extent(entry, header.cluster_bits);
    let bytes = bytes.min(file.length().saturating_sub(at));
    let mut compressed = vec![0; bytes as usize];
    file.read_data(&mut compressed, at)?;
    let mut cluster = vec![0; header.cluster_size() as usize];
    let is_whole = match header.compression {
        Compression::Deflate => inflate(&compressed, &mut cluster),
        Compression::Zstd => unzstd(&compressed, &mut cluster),
    };
    if is_whole { Ok(cluster) } else { Err(invalid("its bytes cannot be decompressed")) }
}

fn inflate(compressed: &[u8], cluster: &mut [u8]) -> bool {
    let (status, _, written) = decompress(&mut DecompressorOxide::new(), compressed, cluster, 0, 0);
    matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput) && written == cluster.len()
}

fn unzstd(compressed: &[u8], cluster: &mut [u8]) -> bool {
    // A window beyond the cluster has no use, and would take memory as its header likes.
    if window(compressed).is_none_or(|window| window > (cluster.len() as u64).max(1 << 20) * 2) {
        return false;
    }
    let decoder = ruzstd::decoding::StreamingDecoder::new(compressed);
    decoder.is_ok_and(|mut decoder| decoder.read_exact(cluster).is_ok())
}

/// The window of a frame, in bytes (RFC 8878, 3.1.1.1).
fn window(frame: &[u8]) -> Option<u64> {
    let descriptor = *frame.get(4)?;
    if descriptor & 1 << 5 == 0 {
        let byte = u64::from(*frame.get(5)?);
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * (byte & 7));
    }
    // A single segment: the window is the content.
    let skip = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = frame.get(skip..skip + bytes)?;
    let value = field.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    Some(if bytes == 2 { value + 256 } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extent_ends_with_its_last_sector() {
        // 64 KiB: 54 bits of offset, 8 of sectors.
        assert_eq!(extent(COMPRESSED | 3 << 54 | 0x1_0203, 16), (0x1_0203, 2048 - 3));
        assert_eq!(extent(COMPRESSED | 0x200, 9), (0x200, 512));
    }

    #[test]
    fn window_is_that_of_the_frames_header() {
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        let frame = |rest: &[u8]| [&magic[..], rest].concat();
        assert_eq!(window(&frame(&[0, 0x58])), Some(2 << 20));
        assert_eq!(window(&frame(&[0x60, 0, 1])), Some(512));
        assert_eq!(window(&frame(&[0xa0, 0, 0, 1, 0])), Some(1 << 16));
        assert_eq!(window(&magic), None);
    }
}
