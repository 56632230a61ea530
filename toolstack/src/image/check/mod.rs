//! Checks a qcow2 image at rest: counts what refers to each of its clusters, and compares that with the refcounts that it records. Memory
//! is bounded whatever the image says: where it has more clusters than are counted at once, it is walked again for the next ones.

mod refcounts;
mod walk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use refcounts::Refcounts;
use walk::{Entry, Visitor, Walk};

use super::Geometry;

/// Clusters whose references are counted at a time: 16 MiB of counters.
const WINDOW: u64 = 4 << 20;

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Clusters with a refcount that is too high: space is lost, no data.
    pub leaks: u64,
    /// Clusters with a refcount that is too low, and entries of tables that cannot be right: data may be lost.
    pub corruptions: u64,
    /// Clusters of the guest's, and how many of them are in the image, compressed, and not right behind the one before in their table.
    pub total_clusters: u64,
    /// As above.
    pub allocated_clusters: u64,
    /// As above.
    pub compressed_clusters: u64,
    /// As above.
    pub fragmented_clusters: u64,
    /// In bytes, the end of the last cluster that is used.
    pub image_end: u64,
}

/// Who is told what a check does.
pub trait Watcher {
    /// One line about something wrong.
    fn found(&mut self, line: &str);
    /// So much of the work, from 0 to 1, is done.
    fn progress(&mut self, done: f64);
}

/// Checks an image, whose file nobody writes meanwhile.
///
/// # Errors
/// The file cannot be read.
pub fn check(file: &File, geometry: &Geometry, watcher: &mut dyn Watcher) -> io::Result<Report> {
    check_by(file, geometry, watcher, WINDOW)
}

fn check_by(file: &File, geometry: &Geometry, watcher: &mut dyn Watcher, window: u64) -> io::Result<Report> {
    let report =
        Report { total_clusters: geometry.size.div_ceil(geometry.cluster_size()), ..Report::default() };
    let refcounts = Refcounts::new(file, geometry);
    let mut pass = Pass {
        geometry,
        refcounts,
        report,
        watcher,
        first: 0,
        counts: Vec::new(),
        end: 0,
        next_offset: None,
        walked: 0.0,
        walks: 1.0,
        shown: 0.0,
    };
    pass.end = pass.used_end()?;
    loop {
        pass.walks = pass.end.div_ceil(window).max(1) as f64;
        let clusters = (geometry.clusters() - pass.first).min(window);
        pass.counts.clear();
        pass.counts.resize(clusters as usize, 0);
        Walk::new(file, geometry).visit(&mut pass)?;
        pass.compare()?;
        pass.first += window;
        pass.walked += 1.0;
        if pass.first >= pass.end {
            return Ok(pass.report);
        }
    }
}

/// One walk through an image, which counts the references to some of its clusters.
struct Pass<'a> {
    geometry: &'a Geometry,
    refcounts: Refcounts<'a>,
    report: Report,
    watcher: &'a mut dyn Watcher,
    /// The first cluster that is counted. In the walk from 0, everything else is checked too.
    first: u64,
    /// References to it, and to those behind it.
    counts: Vec<u32>,
    /// No cluster from this one on is used, as far as it is known.
    end: u64,
    /// Where the guest's next cluster is if it is right behind the one before in its table.
    next_offset: Option<u64>,
    /// Walks done, and all of them.
    walked: f64,
    walks: f64,
    /// The progress that was told last.
    shown: f64,
}

impl Pass<'_> {
    fn wrong_line(&mut self, line: &str) {
        self.report.corruptions += 1;
        self.watcher.found(&format!("corrupt: {line}"));
    }

    /// The end of what is referred to, or counted by a block.
    fn used_end(&self) -> io::Result<u64> {
        let of_block = Refcounts::clusters_of_block(self.geometry);
        let mut end = self.end;
        for index in (0..Refcounts::blocks(self.geometry)).rev() {
            if matches!(self.refcounts.block_offset(index)?, Ok(1..)) {
                end = end.max((index + 1).saturating_mul(of_block));
                break;
            }
        }
        Ok(end.min(self.geometry.clusters()))
    }

    /// Compares the counted references with the recorded ones.
    fn compare(&mut self) -> io::Result<()> {
        for (cluster, references) in (self.first..).zip(std::mem::take(&mut self.counts)) {
            let recorded = self.refcounts.get(cluster)?;
            let counted = u64::from(references);
            if recorded > 0 || counted > 0 {
                self.report.image_end = (cluster + 1) * self.geometry.cluster_size();
            }
            let line = || format!("cluster {cluster}: refcount {recorded}, referred to {counted} times");
            if recorded > counted {
                self.report.leaks += 1;
                self.watcher.found(&format!("leaked: {}", line()));
            } else if recorded < counted {
                self.wrong_line(&line());
            }
        }
        Ok(())
    }
}

impl Visitor for Pass<'_> {
    fn refers(&mut self, first: u64, last: u64) {
        let bits = self.geometry.cluster_bits;
        if self.first == 0 {
            self.end = self.end.max((last >> bits) + 1).min(self.geometry.clusters());
        }
        for cluster in first >> bits..=last >> bits {
            let at = cluster.checked_sub(self.first).and_then(|at| self.counts.get_mut(at as usize));
            if let Some(count) = at {
                *count = count.saturating_add(1);
            }
        }
    }

    fn says_copied(&mut self, what: &Entry, offset: u64, copied: bool) -> io::Result<()> {
        if self.first > 0 {
            return Ok(());
        }
        let refcount = self.refcounts.get(offset >> self.geometry.cluster_bits)?;
        if copied != (refcount == 1) {
            let flag = if copied { "is" } else { "is not" };
            self.wrong(
                what,
                &format!("the flag of a refcount of one {flag} set, the refcount is {refcount}"),
            );
        }
        Ok(())
    }

    fn table(&mut self) {
        self.next_offset = None;
    }

    fn allocated(&mut self, offset: u64, compressed: bool) {
        if self.first > 0 {
            return;
        }
        self.report.allocated_clusters += 1;
        if compressed {
            self.report.compressed_clusters += 1;
            // A part of a cluster is never right behind another one's end.
            self.report.fragmented_clusters += 1;
            return;
        }
        if self.next_offset.is_some_and(|next| next != offset) {
            self.report.fragmented_clusters += 1;
        }
        self.next_offset = Some(offset + self.geometry.cluster_size());
    }

    fn wrong(&mut self, what: &Entry, why: &str) {
        if self.first == 0 {
            let Entry { table, at, index, value } = what;
            self.wrong_line(&format!("{table} at {at:#x}: entry {index} is {value:#x}: {why}"));
        }
    }

    fn progress(&mut self, done: u64) {
        if done.is_multiple_of(64) || done == u64::from(self.geometry.l1_entries) {
            let part = done as f64 / f64::from(self.geometry.l1_entries);
            self.shown = self.shown.max((self.walked + part) / self.walks).min(1.0);
            self.watcher.progress(self.shown);
        }
    }
}

/// Reads bytes of a file; what is beyond its end is zero.
fn read_padded(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests;
