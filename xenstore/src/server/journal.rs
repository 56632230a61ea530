//! What a store keeps for a successor: an image of all it holds, and then each change, in frames with checksums.
//!
//! A store that was killed may have written a part of its last frame, of which no client was told. That one is left out. Any
//! other damage makes the whole useless: a store that is not as its clients left it is worse than none.

use std::collections::BTreeMap;

use ring_abi::DomId;

use super::Generation;
use super::path::Path;
use super::quota::Quotas;
use super::record::{DomainRecord, Record};
use super::tree::{NewNode, Tree};

/// The first bytes, with the format's version.
const MAGIC: &[u8; 8] = b"xpvstor1";
/// Bytes of a frame before its content: length and checksum, each `u32`.
const HEAD: usize = 8;
/// Bytes of an image's frames, of which one node more fits into each.
const IMAGE_FRAME: usize = 64 << 10;

/// All that a store holds but its connections, at one time.
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) tree: Tree,
    pub(super) generation: Generation,
    /// All but dom0.
    pub(super) domains: BTreeMap<DomId, DomainRecord>,
    pub(super) quotas: Quotas,
}

/// Appends a frame.
pub(super) fn frame(out: &mut Vec<u8>, content: &[u8]) {
    out.extend((content.len() as u32).to_le_bytes());
    out.extend(crc32fast::hash(content).to_le_bytes());
    out.extend(content);
}

impl Image {
    /// Writes the image's bytes, in parts, to `write`; the frames of [`Core::take_journal`](super::Core::take_journal) follow.
    ///
    /// # Errors
    /// That of `write`.
    pub fn write<E>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        write(MAGIC)?;
        let mut content = Vec::new();
        let mut framed = Vec::new();
        let mut flush = |content: &mut Vec<u8>, least: usize| {
            if content.len() < least {
                return Ok(());
            }
            framed.clear();
            frame(&mut framed, content);
            content.clear();
            write(&framed)
        };
        Record::Quotas(self.quotas).encode(&mut content);
        for domain in self.domains.values() {
            Record::Domain(domain.clone()).encode(&mut content);
            flush(&mut content, IMAGE_FRAME)?;
        }
        self.tree.encode_nodes(&mut |encode| {
            encode(&mut content);
            flush(&mut content, IMAGE_FRAME)
        })?;
        Record::End { generation: self.generation }.encode(&mut content);
        flush(&mut content, 0)
    }

    /// The image's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let written: Result<(), std::convert::Infallible> = self.write(|part| {
            bytes.extend(part);
            Ok(())
        });
        let Ok(()) = written;
        bytes
    }

    /// What an image's and a journal's bytes say: the store after the last whole frame. `None` if the image is not whole, or a
    /// frame is damaged in another way than by being cut off.
    pub fn decode(bytes: &[u8]) -> Option<Image> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let mut image =
            Image { tree: Tree::bare(), generation: 1, domains: BTreeMap::new(), quotas: Quotas::default() };
        let mut is_whole = false;
        while let Some(mut content) = next_frame(&mut rest)? {
            while !content.is_empty() {
                let record = Record::decode(&mut content)?;
                // An image is built of nodes, and changed by all else.
                let is_of_image = matches!(record, Record::Node { .. } | Record::End { .. });
                let is_of_both = matches!(record, Record::Domain(_) | Record::Quotas(_));
                if !is_of_both && is_of_image == is_whole {
                    return None;
                }
                is_whole |= matches!(record, Record::End { .. });
                image.apply(record)?;
            }
        }
        is_whole.then_some(image)
    }

    /// Makes a change; `None` if it is none that a store makes.
    fn apply(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Create { generation, path, perms } => {
                self.reach(generation);
                self.tree.create(&path, &NewNode { perms, generation });
            }
            Record::Value { generation, path, value } => {
                self.reach(generation);
                self.existing(&path)?;
                self.tree.set_value(&path, &value, generation);
            }
            Record::Perms { generation, path, perms } => {
                self.reach(generation);
                self.existing(&path)?;
                self.tree.set_perms(&path, perms, generation);
            }
            Record::Remove { generation, path } => {
                self.reach(generation);
                self.tree.remove(&path, generation)?;
            }
            Record::Node { changed, children_changed, path, perms, value } => {
                self.tree.restore(&path, perms, &value, [changed, children_changed])?;
                self.reach(changed.max(children_changed));
            }
            Record::Domain(domain) => drop(self.domains.insert(domain.domid, domain)),
            Record::Released(domid) => {
                self.domains.remove(&domid);
                for domain in self.domains.values_mut() {
                    domain.target.take_if(|target| *target == domid);
                }
            }
            Record::Quotas(quotas) => self.quotas = quotas,
            Record::End { generation } => self.reach(generation),
        }
        Some(())
    }

    fn reach(&mut self, generation: Generation) {
        self.generation = self.generation.max(generation);
    }

    fn existing(&self, path: &Path) -> Option<()> {
        self.tree.get(path).map(drop)
    }
}

/// Takes the content of a frame off `bytes`: `Some(None)` at the end, or where the last frame was cut off; `None` for a frame that
/// is damaged.
fn next_frame<'b>(bytes: &mut &'b [u8]) -> Option<Option<&'b [u8]>> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else { return Some(None) };
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let Some((content, rest)) = rest.split_at_checked(len) else { return Some(None) };
    *bytes = rest;
    let is_whole = crc32fast::hash(content) == u32::from_le_bytes([c0, c1, c2, c3]);
    is_whole.then_some(Some(content))
}

/// Decodes any bytes, for the fuzz target and the property test.
///
/// # Panics
/// If a store can be made of them whose bytes are not decoded to the same.
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(fuzzing), allow(unreachable_pub))]
pub fn check(bytes: &[u8]) {
    let Some(image) = Image::decode(bytes) else { return };
    assert!(image.tree.is_consistent(), "the counts of nodes are wrong");
    let again = image.to_bytes();
    let decoded = Image::decode(&again).expect("an image's own bytes");
    assert_eq!(decoded.to_bytes(), again, "an image changes when it is kept");
}

#[cfg(test)]
mod tests;
