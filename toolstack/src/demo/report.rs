//! What the demo found, as a table or as JSON.

use serde::Serialize;

use super::words::{DiskResult, NetResult, Served};

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether all of it is as it should be.
    pub ok: bool,
    /// What is not, a line each.
    pub problems: Vec<String>,
    /// The guests.
    pub guests: Vec<GuestReport>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// A guest.
#[derive(Debug, Serialize)]
pub struct GuestReport {
    /// Its name.
    pub name: String,
    /// Its disk, as it saw it.
    pub disk: DiskResult,
    /// SHA-256 of the file in its image, as the filesystem has it afterwards.
    pub image_sha256: String,
    /// Whether e2fsck found the filesystem clean.
    pub filesystem_clean: bool,
    /// Its interface, as it saw it while it sent.
    pub net: NetResult,
    /// What its peer saw of that.
    pub peer: Served,
}

impl Report {
    /// Sums up.
    pub fn new(guests: Vec<GuestReport>, seconds: f64) -> Report {
        let problems: Vec<String> = guests.iter().flat_map(GuestReport::problems).collect();
        Report { ok: problems.is_empty(), problems, guests, seconds }
    }

    /// The table that ends the demo.
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
        table.rows("", "frames of 64 bytes", "frames/s", |g| vec![g.net.small.frames_s]);
        table.rows("", "round trip, 50 % / 99 % / 99.9 %", "us", |g| {
            vec![g.net.ping.p50_us, g.net.ping.p99_us, g.net.ping.p99_9_us]
        });
        table.text + &self.verdict()
    }

    fn verdict(&self) -> String {
        let bytes: u64 = self.guests.iter().map(|g| g.disk.bytes).sum();
        let frames: u64 = self.guests.iter().map(|g| g.peer.frames).sum();
        let mut text = format!(
            "\n{} MiB written, read back and compared; {frames} frames compared byte by byte; {:.1} s\n",
            bytes >> 20,
            self.seconds
        );
        if self.ok {
            text +=
                "Every byte is as it should be: hashes agree with the image files, filesystems are clean.\n";
        }
        for problem in &self.problems {
            text += &format!("WRONG: {problem}\n");
        }
        text
    }
}

impl GuestReport {
    fn problems(&self) -> Vec<String> {
        let GuestReport { name, disk, net, peer, .. } = self;
        let mut problems = Vec::new();
        let mut wrong = |is: bool, what: String| {
            if is {
                problems.push(format!("{name}: {what}"));
            }
        };
        wrong(disk.mismatches > 0, format!("{} blocks were not read as written", disk.mismatches));
        let (ours, file) = (&disk.sha256, &self.image_sha256);
        wrong(ours != file, format!("the image's file has the hash {file}, expected {ours}"));
        wrong(!self.filesystem_clean, "e2fsck finds the filesystem not clean".into());
        let sent = net.large.frames + net.small.frames;
        wrong(sent != peer.frames, format!("{sent} frames were sent, and {} came", peer.frames));
        wrong(peer.mismatches > 0, format!("{} frames were not as sent", peer.mismatches));
        wrong(net.mismatches > 0, format!("{} pings came back wrong", net.mismatches));
        wrong(net.pings != peer.pings, format!("{} pings were sent, and {} came", net.pings, peer.pings));
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

/// Three digits at least, and no more behind the point than are of use.
fn number(value: f64) -> String {
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
