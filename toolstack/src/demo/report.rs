//! The demo's results, as a table or as JSON.

use serde::Serialize;

use super::protocol::{DiskResult, NetResult, Served, Stream};

/// The results of a run of the demo.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether no problem was found.
    pub ok: bool,
    /// The problems, a line each.
    pub problems: Vec<String>,
    /// The guests' results.
    pub guests: Vec<GuestReport>,
    /// How long the demo took, in seconds.
    pub seconds: f64,
}

/// The results of one guest.
#[derive(Debug, Serialize)]
pub struct GuestReport {
    /// The guest's name.
    pub name: String,
    /// The result of its disk workload.
    pub disk: DiskResult,
    /// SHA-256 of the file in its image afterwards, read from the filesystem.
    pub image_sha256: String,
    /// Whether e2fsck found the filesystem clean.
    pub filesystem_clean: bool,
    /// The result of its network workload, as the sender.
    pub net: NetResult,
    /// The same, as its peer received it.
    pub peer: Served,
    /// Its stream of large frames to its peer while that receives in flipped pages.
    pub flipped: Stream,
    /// The same, as its peer received it.
    pub flipped_peer: Served,
}

impl Report {
    /// Collects the guests' results and the problems in them.
    pub fn new(guests: Vec<GuestReport>, seconds: f64) -> Report {
        let problems: Vec<String> = guests.iter().flat_map(GuestReport::problems).collect();
        Report { ok: problems.is_empty(), problems, guests, seconds }
    }

    /// Formats the results as a table.
    pub fn table(&self) -> String {
        let mut table = Table::new(&self.guests);
        table.rows("disk", "write and flush", "MB/s", |g| vec![g.disk.write_mb_s]);
        table.rows("", "read back", "MB/s", |g| vec![g.disk.read_mb_s]);
        table.rows("", "4 KiB random reads, 32 at a time", "IOPS", |g| vec![g.disk.random.iops]);
        table.rows("", "their latency, 50 % / 99 % / 99.9 %", "us", |g| {
            let l = g.disk.random.latency;
            vec![l.p50_us, l.p99_us, l.p99_9_us]
        });
        table.rows("", "4 KiB random reads, one at a time", "IOPS", |g| vec![g.disk.single.iops]);
        table.rows("", "their latency, 50 % / 99 % / 99.9 %", "us", |g| {
            let l = g.disk.single.latency;
            vec![l.p50_us, l.p99_us, l.p99_9_us]
        });
        table.rows("network", "frames of 1514 bytes", "frames/s", |g| vec![g.net.large.frames_s]);
        table.rows("", "", "Gbit/s", |g| vec![g.net.large.gbit_s]);
        table.rows("", "the same, in flipped pages", "frames/s", |g| vec![g.flipped.frames_s]);
        table.rows("", "", "Gbit/s", |g| vec![g.flipped.gbit_s]);
        table.rows("", "frames of 64 bytes", "frames/s", |g| vec![g.net.small.frames_s]);
        table.rows("", "round trip, 50 % / 99 % / 99.9 %", "us", |g| {
            vec![g.net.ping.p50_us, g.net.ping.p99_us, g.net.ping.p99_9_us]
        });
        table.text + &self.summary()
    }

    fn summary(&self) -> String {
        let bytes: u64 = self.guests.iter().map(|g| g.disk.bytes).sum();
        let frames: u64 = self.guests.iter().map(|g| g.peer.frames + g.flipped_peer.frames).sum();
        let mut text = format!(
            "\n{} MiB written, read back and compared; {frames} frames compared byte by byte; {:.1} s\n",
            bytes >> 20,
            self.seconds
        );
        if self.ok {
            text += "No byte differs: hashes agree with the image files, filesystems are clean.\n";
        }
        for problem in &self.problems {
            text += &format!("WRONG: {problem}\n");
        }
        text
    }
}

impl GuestReport {
    fn problems(&self) -> Vec<String> {
        let GuestReport { name, disk, net, peer, flipped, flipped_peer, .. } = self;
        let mut problems = Vec::new();
        let mut check = |failed: bool, what: String| {
            if failed {
                problems.push(format!("{name}: {what}"));
            }
        };
        check(disk.mismatches > 0, format!("{} blocks were not read as written", disk.mismatches));
        let written = &disk.sha256;
        let found = &self.image_sha256;
        check(written != found, format!("the image's file has the hash {found}, expected {written}"));
        check(!self.filesystem_clean, "e2fsck finds the filesystem not clean".into());
        let sent = net.large.frames + net.small.frames;
        check(sent != peer.frames, format!("{sent} frames were sent, and {} received", peer.frames));
        check(peer.mismatches > 0, format!("{} frames were not as sent", peer.mismatches));
        let sent = flipped.frames;
        let received = flipped_peer.frames;
        check(sent != received, format!("{sent} frames were sent to be flipped, and {received} received"));
        let wrong = flipped_peer.mismatches;
        check(wrong > 0, format!("{wrong} frames in flipped pages were not as sent"));
        check(net.mismatches > 0, format!("{} pings were answered wrongly", net.mismatches));
        check(net.pings != peer.pings, format!("{} pings were sent, and {} received", net.pings, peer.pings));
        problems
    }
}

/// A table with a column for each guest.
struct Table<'a> {
    guests: &'a [GuestReport],
    text: String,
}

impl Table<'_> {
    fn new(guests: &[GuestReport]) -> Table<'_> {
        let mut text = format!("\n{:<8} {:<36} {:<9}", "", "", "");
        for guest in guests {
            text += &format!(" {:>22}", guest.name);
        }
        Table { guests, text: text + "\n" }
    }

    fn rows(&mut self, group: &str, what: &str, unit: &str, values: impl Fn(&GuestReport) -> Vec<f64>) {
        self.text += &format!("{group:<8} {what:<36} {unit:<9}");
        for guest in self.guests {
            let cell: Vec<String> = values(guest).into_iter().map(number).collect();
            self.text += &format!(" {:>22}", cell.join(" / "));
        }
        self.text += "\n";
    }
}

/// Formats a number with at least three significant digits.
fn number(value: f64) -> String {
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
