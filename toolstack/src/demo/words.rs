//! What the demo and its guests say to each other: one JSON value a line, orders in, events out.

use serde::{Deserialize, Serialize};

/// What a guest is to do, one thing after the other.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Work on the disk.
    Disk(DiskPlan),
    /// Answer the peer, whose patterns are made from this seed, until it says goodbye.
    Serve(u64),
    /// Stream to the peer and ping it.
    Drive(NetPlan),
    /// Close the devices and end.
    Quit,
}

/// Work on the disk: write, flush, read back, then read here and there.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct DiskPlan {
    /// What the pattern is made from.
    pub seed: u64,
    /// Where the file's blocks of 4096 bytes are on the disk, in the file's order.
    pub runs: Vec<Run>,
    /// How long each random load runs, in milliseconds.
    pub millis: u64,
}

/// Blocks that follow each other on the disk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Run {
    /// The first one's number.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Stream to the peer and ping it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct NetPlan {
    /// The peer's address.
    pub to: [u8; 6],
    /// What the pattern is made from.
    pub seed: u64,
    /// How long each stream runs, in milliseconds.
    pub millis: u64,
    /// How many pings.
    pub pings: u64,
}

/// What a guest says.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// It has its devices; this is its interface's address.
    Ready([u8; 6]),
    /// So much of a phase is done.
    Progress(Progress),
    /// The disk's work is done.
    Disk(DiskResult),
    /// The peer has said goodbye.
    Served(Served),
    /// All streams and pings are done.
    Driven(NetResult),
    /// It cannot go on.
    Failed(String),
}

/// How far a phase is.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub phase: String,
    /// So much is done.
    pub done: u64,
    /// Of so much, in the same unit.
    pub total: u64,
}

/// A disk's numbers.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct DiskResult {
    /// Bytes written and read back.
    pub bytes: u64,
    /// SHA-256 of what was written, in hexadecimal.
    pub sha256: String,
    /// Writing and the flush after it, in 10^6 bytes a second.
    pub write_mb_s: f64,
    /// Reading back, in 10^6 bytes a second.
    pub read_mb_s: f64,
    /// Blocks of 4096 bytes that were read and were not as written.
    pub mismatches: u64,
    /// Random reads of 4096 bytes, 32 at a time.
    pub random: Load,
    /// Random reads of 4096 bytes, one at a time.
    pub single: Load,
}

/// A random load's numbers.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Load {
    /// Operations a second.
    pub iops: f64,
    /// How long they took.
    pub latency: Latency,
}

/// How long something took, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p99_9_us: f64,
    /// All of them.
    pub max_us: f64,
}

/// What a server has seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Served {
    /// Frames of the streams.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were not as sent, or not in their order.
    pub mismatches: u64,
    /// Pings answered.
    pub pings: u64,
}

/// An interface's numbers.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct NetResult {
    /// Frames of 1514 bytes.
    pub large: Stream,
    /// Frames of 64 bytes.
    pub small: Stream,
    /// Round trips, one at a time.
    pub ping: Latency,
    /// How many there were.
    pub pings: u64,
    /// Answers that were not what was asked for.
    pub mismatches: u64,
}

/// A stream's numbers; every frame was acknowledged by the peer, who has compared it byte by byte.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Stream {
    /// Frames sent and acknowledged.
    pub frames: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Frames a second.
    pub frames_s: f64,
    /// 10^9 bits a second.
    pub gbit_s: f64,
}
