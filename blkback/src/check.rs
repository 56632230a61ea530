//! Checks a frontend's request where it is: a pure function from a request to what it asks for, or to the status of its
//! response.

use ring_abi::PAGE_SIZE;
use ring_abi::blkif::{
    Discard, Indirect, Io, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, Request, SECTOR, Segment,
    Status,
};

use crate::engine::DiskInfo;
use crate::request::Operation;

/// Sectors of [`SECTOR`] bytes in a page.
const PAGE_SECTORS: u8 = (PAGE_SIZE / SECTOR) as u8;

/// The properties of the disk that a request is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The disk's length in units of [`SECTOR`] bytes.
    pub sectors: u64,
    /// `sector-size` in bytes, a power of two not below [`SECTOR`]: requests are aligned to it.
    pub sector_size: u32,
    /// Writes are answered with an error.
    pub read_only: bool,
    /// Flushes and barriers are supported.
    pub flush: bool,
    /// Discards are supported.
    pub discard: bool,
    /// The most segments of an indirect request; 0 where none are supported.
    pub indirect_segments: u16,
}

impl Limits {
    /// Those of a disk whose frontend was offered so many segments.
    pub(crate) fn of(info: &DiskInfo, indirect_segments: u16) -> Limits {
        let DiskInfo { sectors, sector_size, read_only, flush, discard, .. } = *info;
        Limits { sectors, sector_size, read_only, flush, discard: discard.is_some(), indirect_segments }
    }
}

/// What a request asks for that passed every check: inside the disk, each segment inside its page, all aligned to the
/// disk's sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What is to be done.
    pub operation: Operation,
    /// [`OP_WRITE_BARRIER`], or a flush that carries data: earlier requests complete first, later ones start after
    /// it. One without data is a [`Operation::Flush`].
    pub barrier: bool,
    /// Length of all segments in bytes; 0 for a flush or discard.
    pub bytes: u32,
}

/// Checks a request.
///
/// ```
/// use blkback::check::{Limits, check};
/// use blkback::request::Operation;
/// use ring_abi::blkif::{Io, OP_FLUSH_DISKCACHE, Request, Status};
///
/// let mut limits =
///     Limits { sectors: 2048, sector_size: 512, read_only: false, flush: true, discard: false, indirect_segments: 0 };
/// let flush = Request::Io(Io {
///     operation: OP_FLUSH_DISKCACHE,
///     handle: 0,
///     id: 1,
///     sector_number: 0,
///     nr_segments: 0,
///     segments: Default::default(),
/// });
/// assert_eq!(check(&flush, &limits).map(|checked| checked.operation), Ok(Operation::Flush));
/// limits.flush = false;
/// assert_eq!(check(&flush, &limits), Err(Status::EOPNOTSUPP));
/// ```
///
/// # Errors
/// The status of the response: EOPNOTSUPP for an operation that the disk does not support, ERROR for a malformed
/// request, one past the disk's end, and a write to a read-only disk. An indirect request is checked by [`check_indirect`] and
/// [`check_segments`] instead: here it is not supported.
#[inline]
pub fn check(request: &Request, limits: &Limits) -> Result<Checked, Status> {
    match request {
        Request::Io(io) => check_io(io, limits),
        Request::Discard(discard) => check_discard(discard, limits),
        // Others are not advertised by any feature key: a conforming frontend does not send these.
        Request::Indirect(_) | Request::Unknown { .. } => Err(Status::EOPNOTSUPP),
    }
}

/// Checks a discard, whose flag is ignored as `discard-secure` is not offered (blkif.h:655).
#[cold]
fn check_discard(discard: &Discard, limits: &Limits) -> Result<Checked, Status> {
    let &Discard { sector_number, nr_sectors, .. } = discard;
    let unit = u64::from(limits.sector_size) / SECTOR as u64;
    let is_inside = sector_number.checked_add(nr_sectors).is_some_and(|end| end <= limits.sectors);
    let is_whole = nr_sectors > 0 && aligned(sector_number, unit) && aligned(nr_sectors, unit);
    // In the order of Linux's backend.
    if limits.read_only || !is_inside || !is_whole {
        return Err(Status::ERROR);
    }
    if !limits.discard {
        return Err(Status::EOPNOTSUPP);
    }
    Ok(Checked { operation: Operation::Discard, barrier: false, bytes: 0 })
}

/// Checks what an indirect request says of itself, before its segments are fetched; returns what it asks for.
///
/// # Errors
/// The status of the response, as of [`check`].
pub fn check_indirect(indirect: &Indirect, limits: &Limits) -> Result<Operation, Status> {
    let operation = match indirect.indirect_op {
        _ if limits.indirect_segments == 0 => return Err(Status::EOPNOTSUPP),
        OP_READ => Operation::Read,
        OP_WRITE if !limits.read_only => Operation::Write,
        // Barriers, flushes and indirect requests inside one, as in Linux.
        _ => return Err(Status::ERROR),
    };
    let counted = (1..=limits.indirect_segments).contains(&indirect.nr_segments);
    if counted { Ok(operation) } else { Err(Status::ERROR) }
}

/// Checks the fetched segments of a request from this sector on; returns their length in bytes.
///
/// # Errors
/// The status of the response: ERROR.
#[inline]
pub fn check_segments(sector_number: u64, segments: &[Segment], limits: &Limits) -> Result<u32, Status> {
    let unit = u64::from(limits.sector_size) / SECTOR as u64;
    let mut sectors = 0;
    for segment in segments {
        if segment.last_sect < segment.first_sect || segment.last_sect >= PAGE_SECTORS {
            return Err(Status::ERROR);
        }
        let len = u64::from(segment.last_sect - segment.first_sect) + 1;
        if !aligned(len, unit) {
            return Err(Status::ERROR);
        }
        sectors += len;
    }
    let end = sector_number.checked_add(sectors).ok_or(Status::ERROR)?;
    if end > limits.sectors || !aligned(sector_number, unit) {
        return Err(Status::ERROR);
    }
    // 4,096 pages at most.
    Ok(sectors as u32 * SECTOR as u32)
}

#[inline]
fn check_io(io: &Io, limits: &Limits) -> Result<Checked, Status> {
    let empty = io.nr_segments == 0;
    let (operation, barrier) = match io.operation {
        OP_READ => (Operation::Read, false),
        OP_WRITE_BARRIER | OP_FLUSH_DISKCACHE if !limits.flush => return Err(Status::EOPNOTSUPP),
        OP_FLUSH_DISKCACHE if empty => (Operation::Flush, false),
        OP_WRITE_BARRIER if empty => (Operation::Flush, true),
        _ if limits.read_only => return Err(Status::ERROR),
        OP_WRITE => (Operation::Write, false),
        // As in Linux, a flush may carry data, which is written once all earlier writes are durable.
        OP_WRITE_BARRIER | OP_FLUSH_DISKCACHE => (Operation::Write, true),
        _ => return Err(Status::EOPNOTSUPP),
    };
    let bytes = if operation == Operation::Flush { 0 } else { check_data(io, limits)? };
    Ok(Checked { operation, barrier, bytes })
}

/// Checks what a request reads or writes; returns its length in bytes.
#[inline]
fn check_data(io: &Io, limits: &Limits) -> Result<u32, Status> {
    let count = usize::from(io.nr_segments);
    if count == 0 || count != io.segments.len() {
        return Err(Status::ERROR);
    }
    check_segments(io.sector_number, &io.segments, limits)
}

/// Whether `value` is a multiple of `unit`, a power of two.
#[inline]
fn aligned(value: u64, unit: u64) -> bool {
    value & (unit - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring_abi::GrantRef;

    const LIMITS: Limits = Limits {
        sectors: 1000,
        sector_size: 512,
        read_only: false,
        flush: true,
        discard: false,
        indirect_segments: 0,
    };

    fn io(operation: u8, sector_number: u64, nr_segments: u8, sects: &[(u8, u8)]) -> Request {
        let segments = sects
            .iter()
            .map(|&(first_sect, last_sect)| Segment { gref: GrantRef(9), first_sect, last_sect })
            .collect();
        Request::Io(Io { operation, handle: 0, id: 1, sector_number, nr_segments, segments })
    }

    fn check_request(request: Request, limits: Limits) -> Result<Checked, Status> {
        check(&request, &limits)
    }

    fn checked(operation: Operation, barrier: bool, bytes: u32) -> Result<Checked, Status> {
        Ok(Checked { operation, barrier, bytes })
    }

    #[test]
    fn check_of_valid_requests_passes() {
        for (request, expected) in [
            (io(OP_READ, 984, 2, &[(0, 7), (0, 7)]), checked(Operation::Read, false, 8192)),
            (io(OP_WRITE, 0, 1, &[(3, 3)]), checked(Operation::Write, false, 512)),
            (io(OP_FLUSH_DISKCACHE, u64::MAX, 0, &[]), checked(Operation::Flush, false, 0)),
            (io(OP_WRITE_BARRIER, 0, 0, &[]), checked(Operation::Flush, true, 0)),
            (io(OP_WRITE_BARRIER, 0, 1, &[(0, 0)]), checked(Operation::Write, true, 512)),
            (io(OP_FLUSH_DISKCACHE, 0, 1, &[(0, 1)]), checked(Operation::Write, true, 1024)),
        ] {
            assert_eq!(check_request(request, LIMITS), expected);
        }
    }

    #[test]
    fn check_malformed_request_is_an_error() {
        for (case, request) in [
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
            assert_eq!(check_request(request, LIMITS), Err(Status::ERROR), "{case}");
        }
    }

    #[test]
    fn check_on_read_only_disk_refuses_writes_and_accepts_flushes() {
        let limits = Limits { read_only: true, ..LIMITS };
        assert_eq!(check_request(io(OP_WRITE, 0, 1, &[(0, 0)]), limits), Err(Status::ERROR));
        assert_eq!(check_request(io(OP_WRITE_BARRIER, 0, 1, &[(0, 0)]), limits), Err(Status::ERROR));
        assert_eq!(
            check_request(io(OP_FLUSH_DISKCACHE, 0, 0, &[]), limits),
            checked(Operation::Flush, false, 0)
        );
        assert!(check_request(io(OP_READ, 0, 1, &[(0, 0)]), limits).is_ok());
    }

    #[test]
    fn check_with_4096_byte_sectors_requires_alignment() {
        let limits = Limits { sector_size: 4096, ..LIMITS };
        assert!(check_request(io(OP_READ, 8, 1, &[(0, 7)]), limits).is_ok());
        assert_eq!(check_request(io(OP_READ, 4, 1, &[(0, 7)]), limits), Err(Status::ERROR));
        assert_eq!(check_request(io(OP_READ, 8, 2, &[(0, 3), (0, 3)]), limits), Err(Status::ERROR));
    }

    #[test]
    fn check_of_an_indirect_request_needs_a_read_or_write_of_as_many_segments_as_offered() {
        let limits = Limits { indirect_segments: 256, ..LIMITS };
        let of = |indirect_op, nr_segments| Indirect {
            indirect_op,
            nr_segments,
            id: 1,
            sector_number: 0,
            handle: 0,
            indirect_grefs: [GrantRef(9); 8],
        };
        let check = |op, segments, limits: &Limits| check_indirect(&of(op, segments), limits);
        assert_eq!(check(OP_READ, 1, &limits), Ok(Operation::Read));
        assert_eq!(check(OP_WRITE, 256, &limits), Ok(Operation::Write));
        for (op, segments) in
            [(OP_READ, 0), (OP_READ, 257), (OP_READ, u16::MAX), (2, 1), (3, 1), (6, 1), (255, 1)]
        {
            assert_eq!(check(op, segments, &limits), Err(Status::ERROR), "{op} of {segments}");
        }
        let read_only = Limits { read_only: true, ..limits };
        assert_eq!(check(OP_WRITE, 1, &read_only), Err(Status::ERROR));
        assert_eq!(check(OP_READ, 1, &LIMITS), Err(Status::EOPNOTSUPP));
        let whole = Segment { gref: GrantRef(9), first_sect: 0, last_sect: 7 };
        let large = Limits { sectors: u64::MAX, ..limits };
        assert_eq!(check_segments(8, &[whole; 4096], &large), Ok(16 << 20));
        assert_eq!(check_segments(0, &[whole; 126], &limits), Err(Status::ERROR), "past the end");
        let backwards = Segment { first_sect: 5, last_sect: 4, ..whole };
        assert_eq!(check_segments(0, &[whole, backwards], &limits), Err(Status::ERROR));
    }

    proptest! {
        #[test]
        fn check_of_a_discard_passes_whole_sectors_inside_the_disk_alone(
            sector_number in prop_oneof![0..1100u64, any::<u64>()],
            nr_sectors in prop_oneof![0..1100u64, any::<u64>()],
            flag: u8,
            shift in 0..4u32,
        ) {
            let limits = Limits { discard: true, sector_size: 512 << shift, ..LIMITS };
            let discard = Request::Discard(Discard { flag, handle: 0, id: 1, sector_number, nr_sectors });
            let end = u128::from(sector_number) + u128::from(nr_sectors);
            let is_whole = (sector_number | nr_sectors) % (1 << shift) == 0;
            let expected = match nr_sectors > 0 && end <= 1000 && is_whole {
                true => checked(Operation::Discard, false, 0),
                false => Err(Status::ERROR),
            };
            prop_assert_eq!(check(&discard, &limits), expected);
            let read_only = Limits { read_only: true, discard: false, ..limits };
            prop_assert_eq!(check(&discard, &read_only), Err(Status::ERROR));
            let off = Limits { discard: false, ..limits };
            prop_assert_eq!(check(&discard, &off), expected.and(Err(Status::EOPNOTSUPP)));
        }
    }

    #[test]
    fn check_operation_not_advertised_is_not_supported() {
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
            assert_eq!(check_request(request, LIMITS), Err(Status::EOPNOTSUPP));
        }
        let no_flush = Limits { flush: false, ..LIMITS };
        assert_eq!(check_request(io(OP_FLUSH_DISKCACHE, 0, 0, &[]), no_flush), Err(Status::EOPNOTSUPP));
        assert_eq!(check_request(io(OP_WRITE_BARRIER, 0, 1, &[(0, 0)]), no_flush), Err(Status::EOPNOTSUPP));
    }
}
