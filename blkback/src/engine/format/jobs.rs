// Not a core: does I/O or calls a hypervisor.

//! What an image's thread does with the image while it is served, apart from the guest's operations: at once, or in slices between them.

use super::header::FormatError;
use super::image::{Job, Reply, Running, Task};
use super::layer::{Found, Kind, Layer};
use super::worker::Worker;
use imago::format::PreallocateMode;
use imago::format::drivers::FormatDriverInstance;
use nix::errno::Errno;
use std::fmt::Display;
use std::io;
use std::sync::atomic::Ordering;

/// Bytes that a slice moves, but for the rest of a cluster.
pub(super) const SLICE: u64 = 1 << 20;
/// Looks at tables that a slice has at most, each of which may read one.
pub(super) const LOOKS: usize = 256;

/// The error that something is not as it has to be for a job.
pub(super) fn refused(found: impl Display, expected: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, FormatError::new(found, expected))
}

impl Worker {
    /// Does a job, or begins it; nothing waits to be answered.
    pub(super) fn start_job(&mut self, job: Job, reply: Reply) {
        let outcome = match job {
            _ if self.running.is_some() => Err(Errno::EBUSY.into()),
            Job::Resize(bytes) => self.resize(bytes),
            Job::Snapshot(layer) => self.snapshot(*layer),
            Job::Replace(at, layer) => self.replace(at, *layer),
            Job::Walk(task, progress) => match self.begin(task) {
                Ok(()) => {
                    progress.set(0, self.size());
                    self.running = Some(Running { task, at: 0, progress, reply });
                    return;
                }
                Err(error) => Err(error),
            },
        };
        // Full never, and lost only if nobody waits for it.
        let _ = reply.try_send(outcome);
    }

    fn begin(&mut self, task: Task) -> io::Result<()> {
        if self.chain.0.len() < 2 {
            return Err(refused("an image without a backing file", "one with a backing file"));
        }
        match task {
            Task::Stream => Ok(()),
            Task::Commit => self.begin_commit(),
        }
    }

    /// Does the next slice of what is done in slices, if there is any; nothing waits to be answered.
    pub(super) fn run_slice(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let outcome = match running.progress.is_cancelled() {
            true => Err(Errno::ECANCELED.into()),
            false => self.slice(&mut running),
        };
        running.progress.set(running.at, self.size());
        match outcome {
            Ok(false) => self.running = Some(running),
            outcome => drop(running.reply.try_send(outcome.map(drop))),
        }
    }

    /// `true` once all is done.
    fn slice(&mut self, running: &mut Running) -> io::Result<bool> {
        match running.task {
            Task::Stream => self.stream_slice(&mut running.at)?,
            Task::Commit => self.commit_slice(&mut running.at)?,
        }
        if running.at < self.size() {
            return Ok(false);
        }
        match running.task {
            Task::Stream => self.leave_backing()?,
            Task::Commit => self.write_down(0)?,
        }
        Ok(true)
    }

    /// Makes the disk longer: what is new reads as zeroes.
    fn resize(&mut self, bytes: u64) -> io::Result<()> {
        if bytes < self.size() || !bytes.is_multiple_of(512) {
            return Err(Errno::EINVAL.into());
        }
        // Bytes of a longer image below would show through.
        if self.chain.0[1..].iter().any(|layer| layer.size() > self.size()) {
            return Err(Errno::EOPNOTSUPP.into());
        }
        self.grow(0, bytes)?;
        self.image.size.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the qcow2 image with so many above it longer.
    pub(super) fn grow(&mut self, layer: usize, bytes: u64) -> io::Result<()> {
        self.write_down(layer)?;
        // The last unit of the disk may have been a part of one.
        self.forget_all();
        self.wait_for_users();
        self.clear_behind_end(layer)?;
        self.mapped_at(layer)?.tables.resize_grow(bytes, PreallocateMode::None)?;
        self.chain.0[layer].file.with_order(|order| order.set_freed(true));
        self.write_down(layer)
    }

    /// Clears what another program may have left behind the disk's end in its last cluster.
    fn clear_behind_end(&self, at: usize) -> io::Result<()> {
        let layer = &self.chain.0[at];
        let (Kind::Qcow2(mapped), Some(last)) = (&layer.kind, layer.size().checked_sub(512)) else {
            return Ok(());
        };
        let behind = layer.size().next_multiple_of(mapped.header.cluster_size()) - layer.size();
        match layer.find(at, last, 512)?.0 {
            Some(Found::At { offset, writable: true, .. }) if behind > 0 => {
                let mut buffer = layer.file.buffer(behind as usize)?;
                let zeroes = &mut buffer.as_mut().into_slice()[..behind as usize];
                zeroes.fill(0);
                layer.file.write_data(zeroes, offset + 512)
            }
            _ => Ok(()),
        }
    }

    /// Puts an empty image over the others. Everything that was answered is below it, on the medium.
    fn snapshot(&mut self, layer: Layer) -> io::Result<()> {
        let is_empty = layer.size() == self.size() && self.image.file(layer.file.number()).is_none();
        if !is_empty {
            return Err(Errno::EINVAL.into());
        }
        self.changed = true;
        self.write_tables()?;
        // Nobody writes to the image below from here on: first nobody knows where it is, then nobody uses that.
        self.forget_all();
        self.wait_for_users();
        self.chain.top().file.stop_ahead()?;
        self.chain.top().file.sync_all_written()?;
        layer.file.start_ahead();
        self.chain.0.insert(0, layer);
        self.publish_files();
        Ok(())
    }

    /// Uses another open file of an image below the guest's own.
    fn replace(&mut self, at: usize, layer: Layer) -> io::Result<()> {
        let is_same = self.chain.0.get(at).is_some_and(|old| old.size() == layer.size());
        if at == 0 || !is_same || self.image.file(layer.file.number()).is_some() {
            return Err(Errno::EINVAL.into());
        }
        self.forget_all();
        self.wait_for_users();
        self.chain.0[at] = layer;
        self.publish_files();
        Ok(())
    }

    /// Has the rings use the files of the chain as it is now; nobody uses a place of the others.
    pub(super) fn publish_files(&self) {
        self.image.set_files(self.chain.0.iter().map(|layer| layer.file.clone()));
    }
}
