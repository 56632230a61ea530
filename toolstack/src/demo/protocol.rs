//! The protocol between the demo's driver and its guests: one JSON value a line, commands in, events out.

use serde::{Deserialize, Serialize};

/// A command to a guest, which executes one after the other.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum GuestCommand {
    /// Run the disk workload.
    Disk(DiskPlan),
    /// Verify and answer the peer's frames, whose patterns have this seed, until it has finished.
    Serve(u64),
    /// Run the network workload.
    Drive(NetPlan),
    /// Close the network interface, and open it again; received pages are flipped, or frames are copied.
    Reopen {
        /// Pages are flipped.
        flip: bool,
    },
    /// Only stream large frames to the peer.
    Stream(NetPlan),
    /// Close the devices and exit.
    Quit,
}

/// The disk workload: write, flush, read back, then random reads.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct DiskPlan {
    /// The seed of the pattern.
    pub seed: u64,
    /// The extents of the file in blocks of 4096 bytes, in file order.
    pub extents: Vec<Extent>,
    /// How long the random reads run at each queue depth, in milliseconds.
    pub millis: u64,
}

/// Consecutive blocks of the disk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Extent {
    /// The number of the first block.
    pub first: u64,
    /// The number of blocks.
    pub count: u64,
}

/// The network workload: stream to the peer and ping it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct NetPlan {
    /// The peer's MAC address.
    pub to: [u8; 6],
    /// The seed of the pattern.
    pub seed: u64,
    /// How long each stream runs, in milliseconds.
    pub millis: u64,
    /// The number of pings.
    pub pings: u64,
}

/// An event of a guest.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The devices are connected; this is the network interface's MAC address.
    Ready([u8; 6]),
    /// Progress of a phase.
    Progress(Progress),
    /// The disk workload is done.
    Disk(DiskResult),
    /// The peer has finished.
    Served(Served),
    /// The network workload is done.
    Driven(NetResult),
    /// The one stream is done.
    Streamed(Stream),
    /// The guest failed with this error.
    Failed(String),
}

/// How much of a phase is done.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Progress {
    /// The phase's description.
    pub phase: String,
    /// How much is done.
    pub done: u64,
    /// The whole, in the same unit.
    pub total: u64,
}

/// The result of the disk workload.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct DiskResult {
    /// Bytes written and read back.
    pub bytes: u64,
    /// SHA-256 of the data written, in hexadecimal.
    pub sha256: String,
    /// Throughput of the writes and the flush, in 10^6 bytes a second.
    pub write_mb_s: f64,
    /// Throughput of reading back, in 10^6 bytes a second.
    pub read_mb_s: f64,
    /// Blocks of 4096 bytes that differed from what was written.
    pub mismatches: u64,
    /// Random reads of 4096 bytes, 32 at a time.
    pub random: Load,
    /// Random reads of 4096 bytes, one at a time.
    pub single: Load,
}

/// The result of random reads.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Load {
    /// Operations a second.
    pub iops: f64,
    /// The latency of an operation.
    pub latency: Latency,
}

/// Percentiles of a latency, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Latency {
    /// The median.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p99_9_us: f64,
    /// The maximum.
    pub max_us: f64,
}

/// What the receiver of a network workload counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Served {
    /// Frames of streams received.
    pub frames: u64,
    /// Bytes of these frames.
    pub bytes: u64,
    /// Frames whose data was wrong, or that were out of order.
    pub mismatches: u64,
    /// Pings answered.
    pub pings: u64,
}

/// The result of the network workload.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct NetResult {
    /// The stream of frames of 1514 bytes.
    pub large: Stream,
    /// The stream of frames of 64 bytes.
    pub small: Stream,
    /// The latency of pings, one at a time.
    pub ping: Latency,
    /// The number of pings sent.
    pub pings: u64,
    /// Answers with a wrong number or wrong data.
    pub mismatches: u64,
}

/// The result of a stream. Every frame was acknowledged by the peer, which compared it byte by byte.
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
