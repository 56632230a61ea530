// Not a core: does I/O or calls a hypervisor.

//! The files in which a device's requests in flight are recorded: one for each of its queues, for a successor of this process.
//!
//! The file of the first queue has the name that it has where there is one queue only, so that a successor, of whichever
//! version, finds it. Rings are resumed together or not at all.

use inflight::{InflightDir, InflightRegion, Result};
use xenbus::Device;

use crate::config::{Recovery, inflight_bytes};
use crate::handshake::{MAX_QUEUES, Negotiated};

/// The records of one device's requests in flight; none where they are not kept.
#[derive(Debug)]
pub(crate) struct Records {
    dir: Option<InflightDir>,
    /// The name of the first queue's.
    name: String,
}

impl Records {
    /// Records of the device in this directory, if there is one.
    pub(crate) fn new(dir: Option<InflightDir>, device: &Device) -> Records {
        Records { dir, name: format!("vbd-{}-{}", device.front, device.id) }
    }

    /// Whether requests are recorded.
    pub(crate) fn are_kept(&self) -> bool {
        self.dir.is_some()
    }

    /// Leaves what is recorded to a successor: it is not removed any more.
    pub(crate) fn leave(&mut self) {
        self.dir = None;
    }

    /// Makes an empty record for each queue.
    ///
    /// # Errors
    /// Those of [`InflightDir::create`]; what was made is removed again.
    pub(crate) fn create(&self, negotiated: &Negotiated) -> Result<Vec<Recovery>> {
        let Some(dir) = &self.dir else {
            return Ok(negotiated.queues.iter().map(|_| Recovery::None).collect());
        };
        // Of an earlier connection with more queues.
        self.remove();
        let create = |queue: usize| {
            let bytes = inflight_bytes(negotiated.abi, negotiated.queues[queue].refs.len());
            dir.create(&self.name(queue), &negotiated.describe(queue), bytes).map(Recovery::Record)
        };
        (0..negotiated.queues.len()).map(create).collect::<Result<_>>().inspect_err(|_| self.remove())
    }

    /// Opens what an earlier process has recorded for these rings; `None` if that is not there for each of them.
    ///
    /// # Errors
    /// Those of [`InflightDir::open`].
    pub(crate) fn open(&self, negotiated: &Negotiated) -> Result<Option<Vec<Recovery>>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let open = |queue: usize| {
            let bytes = inflight_bytes(negotiated.abi, negotiated.queues[queue].refs.len());
            dir.open(&self.name(queue), &negotiated.describe(queue), bytes)
        };
        let opened: Vec<Option<InflightRegion>> =
            (0..negotiated.queues.len()).map(open).collect::<Result<_>>()?;
        Ok(opened.into_iter().map(|region| region.map(Recovery::Resume)).collect())
    }

    /// Removes all that is recorded, of rings that are no longer served.
    pub(crate) fn remove(&self) {
        if let Some(dir) = &self.dir {
            (0..MAX_QUEUES as usize).for_each(|queue| dir.remove(&self.name(queue)));
        }
    }

    fn name(&self, queue: usize) -> String {
        match queue {
            0 => self.name.clone(),
            queue => format!("{}-queue-{queue}", self.name),
        }
    }
}
