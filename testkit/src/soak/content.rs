//! What an image must contain: blocks that name their image, their place and their version, sector by sector.

use std::io;

use ring_abi::blkif::SECTOR;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of an image.
pub const BLOCKS: u64 = 64;

/// Blocks that one check writes and then reads.
const RUN: u64 = 4;

/// A disk, or the image itself.
pub trait Medium {
    /// Reads a block.
    ///
    /// # Errors
    /// The disk is gone.
    fn read(&mut self, block: u64, into: &mut [u8; BLOCK]) -> io::Result<()>;

    /// Writes blocks, which may be written in any order, and returns once all are acknowledged.
    ///
    /// # Errors
    /// The disk is gone; some may have been written.
    fn write(&mut self, blocks: &[(u64, [u8; BLOCK])]) -> io::Result<()>;
}

/// Why a medium does not hold what it should.
#[derive(Debug)]
pub enum ContentError {
    /// It is gone.
    Io(io::Error),
    /// It holds something else.
    Wrong(String),
}

impl std::fmt::Display for ContentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ContentError::Io(error) => write!(f, "{error}"),
            ContentError::Wrong(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for ContentError {
    fn from(error: io::Error) -> ContentError {
        ContentError::Io(error)
    }
}

/// What was written to an image.
#[derive(Clone, Debug)]
pub struct Content {
    image: usize,
    /// Of each block the version that was acknowledged last.
    acknowledged: [u64; BLOCKS as usize],
    /// Of each block the version that was sent last.
    sent: [u64; BLOCKS as usize],
    version: u64,
}

impl Content {
    /// An image of zeroes.
    pub fn new(image: usize) -> Content {
        let none = [0; BLOCKS as usize];
        Content { image, acknowledged: none, sent: none, version: 0 }
    }

    /// Writes some blocks, and reads them and some others.
    ///
    /// # Errors
    /// [`ContentError::Wrong`] if a block is torn, foreign, or older than what was acknowledged.
    pub fn exercise(&mut self, medium: &mut impl Medium) -> Result<(), ContentError> {
        let mut blocks = Vec::new();
        for _ in 0..RUN {
            self.version += 1;
            // 5 and the number of blocks have no common factor: the versions of a run are of different blocks.
            let block = self.version * 5 % BLOCKS;
            self.sent[block as usize] = self.version;
            blocks.push((block, stamp(self.image, block, self.version)));
        }
        medium.write(&blocks)?;
        for (block, _) in &blocks {
            self.acknowledged[*block as usize] = self.sent[*block as usize];
        }
        for (block, _) in &blocks {
            self.check(medium, *block)?;
            self.check(medium, (*block + BLOCKS / 2) % BLOCKS)?;
        }
        Ok(())
    }

    /// Reads all blocks.
    ///
    /// # Errors
    /// As [`Content::exercise`].
    pub fn check_all(&mut self, medium: &mut impl Medium) -> Result<(), ContentError> {
        (0..BLOCKS).try_for_each(|block| self.check(medium, block))
    }

    fn check(&mut self, medium: &mut impl Medium, block: u64) -> Result<(), ContentError> {
        let mut bytes = [0; BLOCK];
        medium.read(block, &mut bytes)?;
        let found =
            (0..BLOCK / SECTOR).map(|sector| Stamp::read(&bytes[sector * SECTOR..][..SECTOR], sector));
        let found: Vec<Stamp> = found.collect();
        let at = block as usize;
        let wrong = |what: String| {
            let expected = [self.acknowledged[at], self.sent[at]];
            let text = format!("image {}, block {block}: {what}, expected version {expected:?}", self.image);
            Err(ContentError::Wrong(text))
        };
        let version = match found[0] {
            Stamp::Zero => 0,
            Stamp::Of { image, block: stamped, version } if (image, stamped) == (self.image, block) => {
                version
            }
            _ => return wrong(format!("found {:?}", found[0])),
        };
        if found.iter().any(|stamp| *stamp != found[0]) {
            return wrong(format!("torn: {found:?}"));
        }
        if ![self.acknowledged[at], self.sent[at]].contains(&version) {
            return wrong(format!("version {version}"));
        }
        // What was read once is not to vanish.
        self.acknowledged[at] = version;
        self.sent[at] = version;
        Ok(())
    }
}

/// What a sector says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stamp {
    Zero,
    Of { image: usize, block: u64, version: u64 },
    Other,
}

impl Stamp {
    fn read(bytes: &[u8], sector: usize) -> Stamp {
        if bytes.iter().all(|byte| *byte == 0) {
            return Stamp::Zero;
        }
        let word = |n: usize| u64::from_le_bytes(bytes[n * 8..][..8].try_into().unwrap_or_default());
        let (image, block, version) = (word(0) as usize, word(1), word(2));
        if bytes == &stamp(image, block, version)[sector * SECTOR..][..SECTOR] {
            Stamp::Of { image, block, version }
        } else {
            Stamp::Other
        }
    }
}

/// A block's bytes: each sector has the image, the block, the version and its own number, and is filled by their sum.
fn stamp(image: usize, block: u64, version: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (number, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        let words = [image as u64, block, version, number as u64];
        let sum = words.iter().fold(1u8, |sum, word| sum.wrapping_mul(31).wrapping_add(*word as u8));
        sector.fill(sum | 1);
        for (word, to) in words.iter().zip(sector.chunks_exact_mut(8)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk in memory, whose writes may be lost.
    struct Ram {
        bytes: Vec<[u8; BLOCK]>,
        /// Writes that are still carried out.
        left: usize,
    }

    impl Ram {
        fn new() -> Ram {
            Ram { bytes: vec![[0; BLOCK]; BLOCKS as usize], left: usize::MAX }
        }
    }

    impl Medium for Ram {
        fn read(&mut self, block: u64, into: &mut [u8; BLOCK]) -> io::Result<()> {
            *into = self.bytes[block as usize];
            Ok(())
        }

        fn write(&mut self, blocks: &[(u64, [u8; BLOCK])]) -> io::Result<()> {
            for (block, bytes) in blocks {
                self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
                self.bytes[*block as usize] = *bytes;
            }
            Ok(())
        }
    }

    /// A content and a disk that holds it.
    fn written() -> (Content, Ram) {
        let mut content = Content::new(3);
        let mut ram = Ram::new();
        for _ in 0..BLOCKS {
            content.exercise(&mut ram).unwrap();
        }
        content.check_all(&mut ram).unwrap();
        (content, ram)
    }

    fn wrong(content: &mut Content, ram: &mut Ram) -> String {
        match content.check_all(ram) {
            Err(ContentError::Wrong(what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn write_that_was_not_acknowledged_may_be_there_or_not() {
        let (mut content, mut ram) = written();
        ram.left = 2;
        assert!(matches!(content.exercise(&mut ram), Err(ContentError::Io(_))));
        content.check_all(&mut ram).unwrap();
        content.check_all(&mut ram).unwrap();
    }

    #[test]
    fn lost_torn_and_foreign_blocks_are_found() {
        let (content, ram) = written();
        let old = stamp(3, 9, 1);
        let misplaced = ram.bytes[10];
        let foreign = stamp(4, 9, content.acknowledged[9]);
        let mut torn = ram.bytes[9];
        torn[SECTOR..2 * SECTOR].copy_from_slice(&old[SECTOR..2 * SECTOR]);
        let mut garbled = ram.bytes[9];
        garbled[BLOCK - 1] ^= 1;
        for (bytes, what) in [
            (old, "version 1,"),
            (misplaced, "block: 10"),
            (foreign, "image: 4"),
            (torn, "torn"),
            (garbled, "Other"),
            ([0; BLOCK], "version 0"),
        ] {
            let mut content = content.clone();
            let mut ram = Ram { bytes: ram.bytes.clone(), left: 0 };
            ram.bytes[9] = bytes;
            let text = wrong(&mut content, &mut ram);
            assert!(text.contains("block 9") && text.contains(what), "{text}");
        }
    }
}
