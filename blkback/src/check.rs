//! Turns a request into checked work, or into the status it is answered with. Pure: nothing here has an effect.

use ring_abi::PAGE_SIZE;
use ring_abi::blkif::{
    Io, MAX_SEGMENTS, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, Request, SECTOR, Segment,
    Status,
};

/// Sectors of [`SECTOR`] bytes in a page.
const PAGE_SECTORS: u8 = (PAGE_SIZE / SECTOR) as u8;

/// The segments of a request: pages of the frontend, and which sectors of each.
pub type Segments = arrayvec::ArrayVec<Segment, MAX_SEGMENTS>;

/// What the disk allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The disk's length in units of [`SECTOR`] bytes.
    pub sectors: u64,
    /// `sector-size` in bytes, a power of two not below [`SECTOR`]: requests are aligned to it.
    pub sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Flushes and barriers are supported.
    pub flush: bool,
}

/// Work that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read the disk into the segments.
    Read(Transfer),
    /// Write the segments to the disk.
    Write(Transfer),
    /// Make completed writes durable.
    Flush,
    /// [`OP_WRITE_BARRIER`], or a flush that carries data: all before, then this, then all after. `None` is a
    /// barrier without data.
    Barrier(Option<Transfer>),
}

/// Bytes to move: inside the disk, each segment inside its page, all aligned to the disk's sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// First sector, in units of [`SECTOR`] bytes.
    pub sector: u64,
    /// At least one.
    pub segments: Segments,
}

/// Checks a request.
///
/// # Errors
/// The status to answer: EOPNOTSUPP for an operation the disk does not have, ERROR for a request that is wrong.
#[inline]
pub fn check(request: &Request, limits: &Limits) -> Result<Work, Status> {
    match request {
        Request::Io(io) => check_io(io, limits),
        // Offered by no feature key of ours: a frontend that asks all the same is told so.
        Request::Discard(_) | Request::Indirect(_) | Request::Unknown { .. } => Err(Status::EOPNOTSUPP),
    }
}

#[inline]
fn check_io(io: &Io, limits: &Limits) -> Result<Work, Status> {
    let empty = io.nr_segments == 0;
    match io.operation {
        OP_READ => Ok(Work::Read(transfer(io, limits)?)),
        OP_WRITE_BARRIER | OP_FLUSH_DISKCACHE if !limits.flush => Err(Status::EOPNOTSUPP),
        OP_FLUSH_DISKCACHE if empty => Ok(Work::Flush),
        OP_WRITE_BARRIER if empty => Ok(Work::Barrier(None)),
        _ if limits.read_only => Err(Status::ERROR),
        OP_WRITE => Ok(Work::Write(transfer(io, limits)?)),
        // As Linux: a flush may carry data, which is written once what came before is durable.
        OP_WRITE_BARRIER | OP_FLUSH_DISKCACHE => Ok(Work::Barrier(Some(transfer(io, limits)?))),
        _ => Err(Status::EOPNOTSUPP),
    }
}

#[inline]
fn transfer(io: &Io, limits: &Limits) -> Result<Transfer, Status> {
    let count = usize::from(io.nr_segments);
    if count == 0 || count != io.segments.len() {
        return Err(Status::ERROR);
    }
    let unit = u64::from(limits.sector_size) / SECTOR as u64;
    let mut sectors = 0;
    for segment in &io.segments {
        if segment.last_sect < segment.first_sect || segment.last_sect >= PAGE_SECTORS {
            return Err(Status::ERROR);
        }
        let len = u64::from(segment.last_sect - segment.first_sect) + 1;
        if !aligned(len, unit) {
            return Err(Status::ERROR);
        }
        sectors += len;
    }
    let end = io.sector_number.checked_add(sectors).ok_or(Status::ERROR)?;
    if end > limits.sectors || !aligned(io.sector_number, unit) {
        return Err(Status::ERROR);
    }
    Ok(Transfer { sector: io.sector_number, segments: io.segments.clone() })
}

/// `unit` is a power of two.
#[inline]
fn aligned(value: u64, unit: u64) -> bool {
    value & (unit - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::GrantRef;
    use ring_abi::blkif::{Discard, Indirect};

    const LIMITS: Limits = Limits { sectors: 1000, sector_size: 512, read_only: false, flush: true };

    fn io(operation: u8, sector_number: u64, nr_segments: u8, sects: &[(u8, u8)]) -> Request {
        let segments = sects
            .iter()
            .map(|&(first_sect, last_sect)| Segment { gref: GrantRef(9), first_sect, last_sect })
            .collect();
        Request::Io(Io { operation, handle: 0, id: 1, sector_number, nr_segments, segments })
    }

    fn verdict(request: Request, limits: Limits) -> Result<Work, Status> {
        check(&request, &limits)
    }

    #[test]
    fn what_is_right_passes() {
        let Ok(Work::Read(read)) = verdict(io(OP_READ, 984, 2, &[(0, 7), (0, 7)]), LIMITS) else { panic!() };
        assert_eq!((read.sector, read.segments.len()), (984, 2));
        assert!(matches!(verdict(io(OP_WRITE, 0, 1, &[(3, 3)]), LIMITS), Ok(Work::Write(_))));
        assert_eq!(verdict(io(OP_FLUSH_DISKCACHE, u64::MAX, 0, &[]), LIMITS), Ok(Work::Flush));
        assert_eq!(verdict(io(OP_WRITE_BARRIER, 0, 0, &[]), LIMITS), Ok(Work::Barrier(None)));
        assert!(matches!(verdict(io(OP_WRITE_BARRIER, 0, 1, &[(0, 0)]), LIMITS), Ok(Work::Barrier(Some(_)))));
        assert!(matches!(
            verdict(io(OP_FLUSH_DISKCACHE, 0, 1, &[(0, 0)]), LIMITS),
            Ok(Work::Barrier(Some(_)))
        ));
    }

    #[test]
    fn what_is_wrong_is_an_error() {
        for (what, request) in [
            ("no segments", io(OP_READ, 0, 0, &[])),
            ("255 segments", io(OP_READ, 0, 255, &[(0, 7); 11])),
            ("12 segments", io(OP_WRITE, 0, 12, &[(0, 7); 11])),
            ("last before first", io(OP_READ, 0, 1, &[(4, 3)])),
            ("last past the page", io(OP_READ, 0, 1, &[(0, 8)])),
            ("first and last past the page", io(OP_READ, 0, 1, &[(255, 255)])),
            ("past the end", io(OP_READ, 993, 1, &[(0, 7)])),
            ("at the end", io(OP_READ, 1000, 1, &[(0, 0)])),
            ("wrapping u64", io(OP_READ, u64::MAX, 1, &[(0, 7)])),
            ("wrapping to 0", io(OP_WRITE, u64::MAX - 7, 1, &[(0, 7)])),
        ] {
            assert_eq!(verdict(request, LIMITS), Err(Status::ERROR), "{what}");
        }
    }

    #[test]
    fn a_read_only_disk_refuses_writes_and_takes_flushes() {
        let limits = Limits { read_only: true, ..LIMITS };
        assert_eq!(verdict(io(OP_WRITE, 0, 1, &[(0, 0)]), limits), Err(Status::ERROR));
        assert_eq!(verdict(io(OP_WRITE_BARRIER, 0, 1, &[(0, 0)]), limits), Err(Status::ERROR));
        assert_eq!(verdict(io(OP_FLUSH_DISKCACHE, 0, 0, &[]), limits), Ok(Work::Flush));
        assert!(verdict(io(OP_READ, 0, 1, &[(0, 0)]), limits).is_ok());
    }

    #[test]
    fn sectors_of_4096_bytes_want_alignment() {
        let limits = Limits { sector_size: 4096, ..LIMITS };
        assert!(verdict(io(OP_READ, 8, 1, &[(0, 7)]), limits).is_ok());
        assert_eq!(verdict(io(OP_READ, 4, 1, &[(0, 7)]), limits), Err(Status::ERROR));
        assert_eq!(verdict(io(OP_READ, 8, 2, &[(0, 3), (0, 3)]), limits), Err(Status::ERROR));
    }

    #[test]
    fn what_is_not_offered_is_not_supported() {
        let discard = Discard { flag: 0, handle: 0, id: 1, sector_number: 0, nr_sectors: 1 };
        let indirect = Indirect {
            indirect_op: 6,
            nr_segments: 1,
            id: 1,
            sector_number: 0,
            handle: 0,
            indirect_grefs: [GrantRef(0); 8],
        };
        for request in [
            Request::Discard(discard),
            Request::Indirect(indirect),
            Request::Unknown { operation: 4, id: 1 },
            Request::Unknown { operation: 255, id: 1 },
        ] {
            assert_eq!(verdict(request, LIMITS), Err(Status::EOPNOTSUPP));
        }
        let no_flush = Limits { flush: false, ..LIMITS };
        assert_eq!(verdict(io(OP_FLUSH_DISKCACHE, 0, 0, &[]), no_flush), Err(Status::EOPNOTSUPP));
        assert_eq!(verdict(io(OP_WRITE_BARRIER, 0, 1, &[(0, 0)]), no_flush), Err(Status::EOPNOTSUPP));
    }
}
