//! How many queues a disk has at most, as `--queues` says.

use clap::builder::{RangedI64ValueParser, ValueParser};

/// The most queues of either end.
const MAX: u32 = if blkback::handshake::MAX_QUEUES < blkfront::handshake::MAX_QUEUES {
    blkback::handshake::MAX_QUEUES
} else {
    blkfront::handshake::MAX_QUEUES
};

/// Reads a number of queues from the command line.
pub fn parser() -> ValueParser {
    RangedI64ValueParser::<u32>::new().range(1..=i64::from(MAX)).into()
}

/// The number given, or else as many as there are processors, 8 at most.
pub fn count(given: Option<u32>) -> u32 {
    given.unwrap_or_else(|| {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        processors.min(MAX)
    })
}
