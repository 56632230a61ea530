// Not a core: does I/O or calls a hypervisor.

//! What an image's thread does with the image while it is served, apart from the guest's operations.

use super::image::Job;
use super::layer::Layer;
use super::worker::Worker;
use imago::format::PreallocateMode;
use imago::format::drivers::FormatDriverInstance;
use nix::errno::Errno;
use std::io;
use std::sync::atomic::Ordering;

impl Worker {
    /// Does a job; nothing waits to be answered.
    pub(super) fn do_job(&mut self, job: Job) -> io::Result<()> {
        match job {
            Job::Resize(bytes) => self.resize(bytes),
            Job::Snapshot(layer) => self.snapshot(*layer),
        }
    }

    /// Makes the disk longer: what is new reads as zeroes.
    fn resize(&mut self, bytes: u64) -> io::Result<()> {
        let old = self.size();
        if bytes < old || !bytes.is_multiple_of(512) {
            return Err(Errno::EINVAL.into());
        }
        // Bytes of a longer image below would show through.
        let longer = self.chain.0[1..].iter().any(|layer| layer.size() > old);
        if longer {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let file = self.chain.top().file.clone();
        self.changed = true;
        self.write_tables()?;
        file.sync_all_written()?;
        // The last unit of the disk may have been a part of one.
        self.forget_all();
        self.wait_for_users();
        self.mapped()?.tables.resize_grow(bytes, PreallocateMode::None)?;
        file.with_order(|order| order.set_freed(true));
        self.changed = true;
        self.write_tables()?;
        file.sync_all_written()?;
        self.image.size.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Puts an empty image over the others. Everything that was answered is below it, on the medium.
    fn snapshot(&mut self, layer: Layer) -> io::Result<()> {
        let is_empty = layer.size() == self.size() && layer.file.number() as usize == self.image.files();
        if !is_empty {
            return Err(Errno::EINVAL.into());
        }
        self.changed = true;
        self.write_tables()?;
        // Nobody writes to the image below from here on: first nobody knows where it is, then nobody uses that.
        self.forget_all();
        self.wait_for_users();
        self.chain.top().file.sync_all_written()?;
        self.image.add_file(layer.file.clone());
        self.chain.0.insert(0, layer);
        Ok(())
    }
}
