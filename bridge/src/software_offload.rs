// Not a core: does I/O or calls a hypervisor.

//! Prepares frames for a port that does not take all of their offloads.

use std::io;

use crate::{
    Batch, Caps, DropReason, Frame, Frames, Malformed, Stats,
    offload::{self, Action},
    partial_checksum::fill_csum,
    segment::Segments,
};

/// Gives `frames` to `forward`, after doing the offloads that `caps` lacks in software. When no frame needs that, `frames`
/// are given unchanged; else clones are collected in `scratch` and given in order. Frames that cannot be are counted.
pub(crate) fn send(
    caps: &Caps,
    stats: &Stats,
    frames: Frames<'_>,
    scratch: &mut Batch,
    mut forward: impl FnMut(Frames<'_>) -> io::Result<()>,
) -> io::Result<()> {
    if frames.iter().all(|frame| offload::passes(frame, caps)) {
        return forward(frames);
    }
    let mut offload = SoftwareOffload { forward: &mut forward, caps, scratch, malformed: 0, too_long: 0 };
    let sent = frames.iter().try_for_each(|frame| offload.take(frame)).and_then(|()| offload.send());
    offload.scratch.clear();
    stats.lost(DropReason::Malformed, offload.malformed);
    stats.lost(DropReason::TooLong, offload.too_long);
    sent
}

struct SoftwareOffload<'a> {
    forward: &'a mut dyn FnMut(Frames<'_>) -> io::Result<()>,
    caps: &'a Caps,
    scratch: &'a mut Batch,
    malformed: u64,
    too_long: u64,
}

impl SoftwareOffload<'_> {
    fn take(&mut self, frame: &Frame) -> io::Result<()> {
        match offload::action(frame, self.caps) {
            Ok(Action::Send) => self.add(|into| {
                into.copy_from(frame);
                Ok(true)
            }),
            Ok(Action::FillChecksum) => self.add(|into| {
                into.copy_from(frame);
                fill_csum(into).map(|()| true)
            }),
            Ok(Action::Segment(segments)) => return self.cut(segments),
            Err(Malformed) => {
                self.malformed += 1;
                return Ok(());
            }
        }
        .map(|_| ())
    }

    fn cut(&mut self, mut segments: Segments<'_>) -> io::Result<()> {
        while self.add(|into| segments.next_into(into))? {}
        Ok(())
    }

    /// Adds the frame that `make` writes to `scratch`, after sending the frames there if it is full. `make` returns
    /// `false` for no frame. Malformed and too long frames are counted. `true`: a frame was added.
    fn add(&mut self, make: impl FnOnce(&mut Frame) -> Result<bool, Malformed>) -> io::Result<bool> {
        if self.scratch.room() == 0 {
            self.send()?;
        }
        let Some(into) = self.scratch.slot() else {
            return Ok(false);
        };
        let made = make(into);
        let fits = into.len() <= self.caps.max_len() || into.offload().gso.is_some();
        match made {
            Ok(true) if fits => return Ok(true),
            Ok(true) => self.too_long += 1,
            Ok(false) => {}
            Err(Malformed) => self.malformed += 1,
        }
        self.scratch.undo();
        Ok(false)
    }

    fn send(&mut self) -> io::Result<()> {
        if !self.scratch.is_empty() {
            (self.forward)(self.scratch.all())?;
            self.scratch.clear();
        }
        Ok(())
    }
}
