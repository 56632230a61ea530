// Not a core: does I/O or calls a hypervisor.

//! Reads where a qcow2 image's tables are, and checks that they are apart and in use: of an image whose refcounts say that a table's
//! cluster is free, the next allocation would overwrite it.

use super::header::{FormatError, Header};
use super::image_file::ImageFile;
use super::order::{L2_OFFSET, Order};
use super::refcounts;
use super::table_file::TableFile;
use imago::StorageExt;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

/// Bytes that are read of a table at once.
const PART: usize = 64 << 10;

/// Reads the tables of an image that is to be written.
///
/// # Errors
/// The file cannot be read, or the image is not consistent.
pub(super) fn load(file: &Arc<ImageFile>, header: &Header) -> io::Result<Order> {
    let l1_bytes = u64::from(header.l1_entries) * 8;
    let l1 = header.l1_offset..header.l1_offset + l1_bytes;
    let refcount_bytes = header.refcount_table_bytes();
    let refcount_table = header.refcount_table_offset..header.refcount_table_offset + refcount_bytes;
    let mut l2_tables = HashSet::new();
    let mut twice = None;
    each_entry(file, l1.start, l1_bytes, |_, entry| {
        let at = entry & L2_OFFSET;
        if at != 0 && !l2_tables.insert(at) {
            twice = Some(at);
        }
    })?;
    if let Some(at) = twice {
        return Err(inconsistent(format!("two entries of the L1 table for the L2 table at {at}"), "one"));
    }
    let mut blocks = Vec::new();
    each_entry(file, refcount_table.start, refcount_bytes, |number, entry| {
        if entry & !511 != 0 {
            blocks.push((number, entry & !511));
        }
    })?;
    let refcount_blocks: HashMap<u64, u64> = blocks.iter().map(|(number, at)| (*at, *number)).collect();
    let cluster = header.cluster_size();
    for at in l2_tables.iter().chain(refcount_blocks.keys()) {
        if at % cluster != 0 || *at >= file.length() {
            return Err(inconsistent(
                format!("a table at {at}"),
                format!("a multiple of {cluster} before {}", file.length()),
            ));
        }
    }
    if refcount_blocks.len() < blocks.len() || l2_tables.iter().any(|at| refcount_blocks.contains_key(at)) {
        return Err(inconsistent("two tables in one cluster", "tables apart"));
    }
    let mut used: Vec<u64> = vec![0];
    for range in [&l1, &refcount_table] {
        used.extend((range.start / cluster..range.end.div_ceil(cluster)).map(|number| number * cluster));
    }
    let roots: HashSet<u64> = used.iter().copied().collect();
    if l2_tables.iter().chain(refcount_blocks.keys()).any(|at| roots.contains(at)) {
        return Err(inconsistent(
            "a table in the header, the L1 table or the refcount table",
            "tables apart",
        ));
    }
    used.extend(l2_tables.iter().chain(refcount_blocks.keys()));
    check_used(file, header, used, &blocks)?;
    Ok(Order::new(cluster, 1 << header.refcount_order, l1, refcount_table, l2_tables, refcount_blocks))
}

fn inconsistent(found: impl std::fmt::Display, expected: impl std::fmt::Display) -> io::Error {
    let expected = format!("{expected} (qemu-img check -r all repairs an image)");
    io::Error::new(io::ErrorKind::InvalidData, FormatError::new(found, expected))
}

/// Calls `each` with the number of each entry of a table, and the entry.
pub(super) fn each_entry(
    file: &Arc<ImageFile>,
    offset: u64,
    bytes: u64,
    mut each: impl FnMut(u64, u64),
) -> io::Result<()> {
    let mut part = vec![0; PART];
    for start in (0..bytes).step_by(PART) {
        let part = &mut part[..(bytes - start).min(PART as u64) as usize];
        file.read_data(part, offset + start)?;
        for (number, word) in part.chunks_exact(8).enumerate() {
            each(start / 8 + number as u64, u64::from_be_bytes(word.try_into().unwrap_or_default()));
        }
    }
    Ok(())
}

/// Checks that the refcounts of these clusters are not 0. `blocks` are the refcount blocks, by their numbers.
fn check_used(
    file: &Arc<ImageFile>,
    header: &Header,
    mut used: Vec<u64>,
    blocks: &[(u64, u64)],
) -> io::Result<()> {
    used.sort_unstable();
    let cluster = header.cluster_size();
    let bits = 1u64 << header.refcount_order;
    let per_block = cluster * 8 / bits;
    let mut loaded: Option<(u64, Vec<u8>)> = None;
    for at in used {
        let (block, index) = (at / cluster / per_block, at / cluster % per_block);
        if loaded.as_ref().is_none_or(|(number, _)| *number != block) {
            let mut bytes = vec![0; cluster as usize];
            if let Ok(found) = blocks.binary_search_by_key(&block, |(number, _)| *number) {
                file.read_data(&mut bytes, blocks[found].1)?;
            }
            loaded = Some((block, bytes));
        }
        let is_zero = loaded.as_ref().is_none_or(|(_, bytes)| refcounts::is_zero(bytes, index, bits));
        if is_zero {
            return Err(inconsistent(format!("refcount 0 of the table at {at}"), "1"));
        }
    }
    Ok(())
}

/// The entry of the L2 table for a guest's offset, as it is in the file; 0 if there is none.
///
/// # Errors
/// The file cannot be read.
pub(super) fn l2_entry(file: &Arc<ImageFile>, header: &Header, offset: u64) -> io::Result<u64> {
    let table = TableFile(file.clone());
    let read = |at: u64| -> io::Result<u64> {
        let mut word = [0; 8];
        table.read(&mut word[..], at)?;
        Ok(u64::from_be_bytes(word))
    };
    let per_table = header.cluster_size() / 8;
    let cluster = offset >> header.cluster_bits;
    // The L1 table may have moved since the image was opened.
    let l2 = read(read(40)? + cluster / per_table * 8)? & L2_OFFSET;
    if l2 == 0 { Ok(0) } else { read(l2 + cluster % per_table * 8) }
}
