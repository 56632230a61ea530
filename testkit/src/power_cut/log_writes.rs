//! Reads what the device mapper's target `log-writes` has logged (Documentation/admin-guide/device-mapper/log-writes.rst of Linux;
//! the layout is that of drivers/md/dm-log-writes.c).
//!
//! A write is logged once it has completed, at the next flush, before which it stands; a mark is logged at once. So what stands before
//! a flush is durable, and what stands before a mark was done before it.

use super::log::{Change, Logged, WriteLog};
use super::sector::SECTOR;
use std::io::{self, Read};

/// `WRITE_LOG_MAGIC`.
const MAGIC: u64 = 0x006a_7366_7773_6872;
/// `WRITE_LOG_VERSION`.
const VERSION: u64 = 1;

/// What the target marks by itself when it is removed (`log_writes_dtr`): not a label of who logs.
const END_MARK: &str = "dm-log-writes-end";

/// The flags of an entry that are known: `LOG_FLUSH_FLAG`, `LOG_FUA_FLAG`, `LOG_DISCARD_FLAG`, `LOG_MARK_FLAG`, `LOG_METADATA_FLAG`.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const METADATA: u64 = 16;

/// Moments of an entry, which may be a flush and then a write.
const MOMENTS: u64 = 4;

/// What was logged. The moments of its operations are those of their entries, in order.
#[derive(Clone, Debug, Default)]
pub struct LogWrites {
    /// The operations.
    pub log: WriteLog,
    /// Labels, and the moments at which they were logged. The target's own mark at its end is not among them.
    pub marks: Vec<(u64, String)>,
}

impl LogWrites {
    /// Reads the log of a disk of so many sectors.
    ///
    /// # Errors
    /// It cannot be read, or is not such a log of sectors of 512 bytes; `Unsupported` for writes that are durable without a flush (FUA).
    pub fn read(mut from: impl Read, sectors: u64) -> io::Result<LogWrites> {
        let [magic, version, entries, sector_size] = words(&sector(&mut from)?);
        let sector_size = sector_size & u64::from(u32::MAX);
        if (magic, version, sector_size) != (MAGIC, VERSION, SECTOR as u64) {
            let found = format!("magic {magic:#x}, version {version}, sectors of {sector_size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no log of writes: {found}")));
        }
        let mut read = LogWrites { log: WriteLog { sectors, ..WriteLog::default() }, ..LogWrites::default() };
        (0..entries).try_for_each(|number| read.entry(number, &mut from)).map(|()| read)
    }

    fn entry(&mut self, number: u64, from: &mut impl Read) -> io::Result<()> {
        let entry = sector(from)?;
        let [start, count, flags, len] = words(&entry);
        let invalid =
            |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("entry {number}: {what}"));
        if flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) != 0 {
            return Err(invalid(format!("flags {flags:#x}")));
        }
        if flags & FUA != 0 {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("entry {number}: a FUA write")));
        }
        if flags & MARK != 0 {
            let label = usize::try_from(len).ok().and_then(|len| entry[32..].get(..len));
            let label = label.ok_or_else(|| invalid(format!("a mark of {len} bytes")))?;
            let label = String::from_utf8_lossy(label).trim_end_matches('\0').to_owned();
            if label != END_MARK {
                self.marks.push((number * MOMENTS + 2, label));
            }
            return Ok(());
        }
        if start.checked_add(count).is_none_or(|end| end > self.log.sectors) {
            return Err(invalid(format!("{count} sectors from {start} on, of {}", self.log.sectors)));
        }
        if flags & FLUSH != 0 {
            self.push(Change::Flush, number * MOMENTS);
        }
        let change = match flags & DISCARD {
            _ if count == 0 => return Ok(()),
            0 => {
                let mut data = vec![0; count as usize * SECTOR];
                from.read_exact(&mut data)?;
                Change::Write { sector: start, data }
            }
            _ => Change::Discard(start..start + count),
        };
        self.push(change, number * MOMENTS + 2);
        Ok(())
    }

    /// What is in the log was complete before the next entry.
    fn push(&mut self, change: Change, moment: u64) {
        self.log.operations.push(Logged { change, submitted: moment + 1, completed: Some(moment + 2) });
    }

    /// The label of the last mark before a cut.
    pub fn mark_before(&self, cut: u64) -> Option<&str> {
        let before = self.marks.iter().take_while(|(at, _)| *at < cut).last();
        before.map(|(_, label)| label.as_str())
    }
}

fn sector(from: &mut impl Read) -> io::Result<[u8; SECTOR]> {
    let mut sector = [0; SECTOR];
    from.read_exact(&mut sector).map(|()| sector)
}

/// The first words, little-endian.
fn words(sector: &[u8; SECTOR]) -> [u64; 4] {
    std::array::from_fn(|n| {
        sector[8 * n..][..8].iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power_cut::Choice;
    use crate::random::generator;

    fn block(words: [u64; 4], rest: &[u8]) -> Vec<u8> {
        let mut block: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        block.extend(rest);
        block.resize(SECTOR, 0);
        block
    }

    fn log(entries: &[Vec<u8>]) -> Vec<u8> {
        let first = block([MAGIC, VERSION, entries.len() as u64, SECTOR as u64], &[]);
        [first, entries.concat()].concat()
    }

    fn write(sector: u64, byte: u8) -> Vec<u8> {
        [block([sector, 1, 0, 0], &[]), vec![byte; SECTOR]].concat()
    }

    #[test]
    fn what_stands_before_a_flush_is_durable() {
        let mark = block([0, 0, MARK, 4], b"done");
        let discard = block([0, 1, DISCARD, 0], &[]);
        let entries = [write(0, 1), write(1, 2), block([0, 0, FLUSH, 0], &[]), mark, write(1, 3), discard];
        let read = LogWrites::read(&log(&entries)[..], 2).unwrap();
        assert_eq!(read.marks, [(14, "done".to_owned())]);
        assert_eq!((read.mark_before(14), read.mark_before(15)), (None, Some("done")));
        let cut = |at, choice| {
            let image = read.log.image(at, choice, &mut generator(1));
            [image[0], image[SECTOR]]
        };
        let flushed = read.log.flushed().next().unwrap() + 1;
        assert_eq!([cut(flushed - 1, Choice::None), cut(flushed, Choice::None)], [[0, 0], [1, 2]]);
        assert_eq!([cut(u64::MAX, Choice::None), cut(u64::MAX, Choice::All)], [[1, 2], [0, 3]]);
    }

    #[test]
    fn the_last_label_stays_the_last_once_the_target_is_removed() {
        let mark = |label: &str| block([0, 0, MARK, label.len() as u64], label.as_bytes());
        let read = LogWrites::read(&log(&[mark("a12-b9"), mark(END_MARK)])[..], 2).unwrap();
        assert_eq!(read.mark_before(u64::MAX), Some("a12-b9"));
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let refused = |log: &[u8]| LogWrites::read(log, 2).unwrap_err().to_string();
        let no_log = refused(&[7; SECTOR]);
        assert!(no_log.starts_with("no log of writes: magic 0x707070707070707"), "{no_log}");
        assert_eq!(refused(&log(&[write(2, 1)])), "entry 0: 1 sectors from 2 on, of 2");
        assert_eq!(refused(&log(&[block([0, 0, FUA, 0], &[])])), "entry 0: a FUA write");
        assert_eq!(refused(&log(&[block([0, 0, MARK, 481], &[])])), "entry 0: a mark of 481 bytes");
        refused(&log(&[block([0, 1, 0, 0], &[])]));
    }
}
