//! Sends frames to a port that cannot take all of them as they are.

use std::io;

use crate::{
    Batch, Caps, Frame, Frames, Port, Reason,
    headers::Malformed,
    offload::{self, Step, fill_csum},
    segment::Segments,
};

/// Sends `frames` to `port`, doing first whatever work of theirs is beyond `caps`. Frames that need none are
/// sent from where they are when that holds for all; else clones go by way of `scratch`, in order.
pub(crate) fn send(
    port: &mut dyn Port,
    caps: &Caps,
    frames: Frames<'_>,
    scratch: &mut Batch,
) -> io::Result<()> {
    if frames.iter().all(|frame| offload::passes(frame, caps)) {
        return port.send(frames);
    }
    let mut adapter = Adapter { port, caps, scratch, malformed: 0, too_long: 0 };
    let sent = frames.iter().try_for_each(|frame| adapter.take(frame)).and_then(|()| adapter.send());
    adapter.scratch.clear();
    let (malformed, too_long) = (adapter.malformed, adapter.too_long);
    port.stats().lost(Reason::Malformed, malformed);
    port.stats().lost(Reason::TooLong, too_long);
    sent
}

struct Adapter<'a> {
    port: &'a mut dyn Port,
    caps: &'a Caps,
    scratch: &'a mut Batch,
    malformed: u64,
    too_long: u64,
}

impl Adapter<'_> {
    fn take(&mut self, frame: &Frame) -> io::Result<()> {
        match offload::step(frame, self.caps) {
            Ok(Step::Pass) => self.add(|into| {
                into.copy_from(frame);
                Ok(true)
            }),
            Ok(Step::Fill) => self.add(|into| {
                into.copy_from(frame);
                fill_csum(into).map(|()| true)
            }),
            Ok(Step::Cut(segments)) => return self.cut(segments),
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

    /// Adds the frame that `make` makes, unless it makes none (`false`), sending first what there is if
    /// there is no room. What cannot be made or is too long is counted; `true` means: made and added.
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
            self.port.send(self.scratch.all())?;
            self.scratch.clear();
        }
        Ok(())
    }
}
