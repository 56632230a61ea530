//! A new qcow2 image, as the bytes of its file: header, refcounts and an empty L1 table.

use super::header::{BACKING_FORMAT, FormatError, MAGIC, V3_BYTES};

/// What a new image is to be: version 3, with refcounts of 16 bits.
#[derive(Clone, Copy, Debug)]
pub struct NewImage<'a> {
    /// Bytes of the disk, a multiple of 512.
    pub size: u64,
    /// A cluster has 2 to the power of this bytes: 9 to 21; QEMU's have 16.
    pub cluster_bits: u32,
    /// The name and the format of the image below it.
    pub backing: Option<(&'a str, &'a str)>,
}

impl NewImage<'_> {
    /// The file.
    ///
    /// # Errors
    /// The size, the clusters or the name are not possible.
    pub fn bytes(&self) -> Result<Vec<u8>, FormatError> {
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(FormatError::new(format!("cluster_bits {}", self.cluster_bits), "9 to 21"));
        }
        if self.size == 0 || !self.size.is_multiple_of(512) {
            return Err(FormatError::new(
                format!("a disk of {} bytes", self.size),
                "a multiple of 512, not 0",
            ));
        }
        let cluster = 1u64 << self.cluster_bits;
        let l1_entries = self.size.div_ceil(cluster * (cluster / 8));
        if l1_entries * 8 > 32 << 20 {
            let expected = "a smaller one, or larger clusters: an L1 table has 32 MiB at most";
            return Err(FormatError::new(format!("a disk of {} bytes", self.size), expected));
        }
        let l1_clusters = (l1_entries * 8).div_ceil(cluster);
        // Refcounts of 16 bits: each block counts for half as many clusters as it has bytes.
        let per_block = cluster / 2;
        let mut blocks = 1;
        let mut table_clusters = 1;
        while 1 + table_clusters + blocks + l1_clusters > blocks * per_block {
            blocks += 1;
            table_clusters = (blocks * 8).div_ceil(cluster);
        }
        let used = 1 + table_clusters + blocks + l1_clusters;
        let mut file = vec![0; (used * cluster) as usize];
        let l1_offset = (1 + table_clusters + blocks) * cluster;
        let header = self.header(l1_entries as u32, l1_offset, table_clusters as u32)?;
        file[..header.len()].copy_from_slice(&header);
        for block in 0..blocks {
            let entry = cluster + block * 8;
            put(&mut file, entry, &((1 + table_clusters + block) * cluster).to_be_bytes());
        }
        for number in 0..used {
            // The blocks are next to each other.
            put(&mut file, (1 + table_clusters) * cluster + number * 2, &1u16.to_be_bytes());
        }
        Ok(file)
    }

    fn header(&self, l1_entries: u32, l1_offset: u64, table_clusters: u32) -> Result<Vec<u8>, FormatError> {
        let cluster = 1u64 << self.cluster_bits;
        let mut extensions = Vec::new();
        if let Some((_, format)) = self.backing {
            extensions.extend(BACKING_FORMAT.to_be_bytes());
            extensions.extend((format.len() as u32).to_be_bytes());
            extensions.extend(format.as_bytes());
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0; 8]);
        let name = self.backing.map_or("", |(name, _)| name);
        let name_offset = (V3_BYTES + extensions.len()) as u64;
        if name.len() > 1023
            || (self.backing.is_some() && name.is_empty())
            || name_offset + name.len() as u64 > cluster
        {
            let expected = "1 to 1023, in the first cluster with the header";
            return Err(FormatError::new(format!("a backing file's name of {} bytes", name.len()), expected));
        }
        let mut header = Vec::new();
        header.extend(MAGIC.to_be_bytes());
        header.extend(3u32.to_be_bytes());
        header.extend(if name.is_empty() { 0 } else { name_offset }.to_be_bytes());
        header.extend((name.len() as u32).to_be_bytes());
        header.extend(self.cluster_bits.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        header.extend(0u32.to_be_bytes());
        header.extend(l1_entries.to_be_bytes());
        header.extend(l1_offset.to_be_bytes());
        header.extend(cluster.to_be_bytes());
        header.extend(table_clusters.to_be_bytes());
        // No snapshots, and no features.
        header.extend([0; 4 + 8 + 3 * 8]);
        header.extend(4u32.to_be_bytes());
        header.extend((V3_BYTES as u32).to_be_bytes());
        header.extend(extensions);
        header.extend(name.as_bytes());
        Ok(header)
    }
}

fn put(file: &mut [u8], at: u64, bytes: &[u8]) {
    file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::header::{Backing, Header};
    use super::*;

    #[test]
    fn new_image_has_the_header_that_was_asked_for() {
        for (size, cluster_bits, backing) in [
            (512, 9, None),
            (1 << 40, 16, Some(("../base.img", "raw"))),
            (7 << 20, 21, Some(("b", "qcow2"))),
            (1 << 30, 9, None),
        ] {
            let file = NewImage { size, cluster_bits, backing }.bytes().unwrap();
            let header = Header::parse(&file, file.len() as u64).unwrap();
            assert_eq!((header.size, header.cluster_bits), (size, cluster_bits));
            let named = header.backing.map(|Backing { name, format }| (name, format.unwrap()));
            assert_eq!(named, backing.map(|(name, format)| (name.to_owned(), format.to_owned())));
        }
    }

    #[test]
    fn image_that_cannot_be_is_refused() {
        let name = "n".repeat(1024);
        for (size, cluster_bits, backing) in [
            (0, 16, None),
            (513, 16, None),
            (512, 8, None),
            (512, 22, None),
            (1 << 40, 9, None),
            (512, 16, Some((&name[..], "raw"))),
        ] {
            assert!(NewImage { size, cluster_bits, backing }.bytes().is_err(), "{size} {cluster_bits}");
        }
    }
}
