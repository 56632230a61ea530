// Not a core: does I/O or calls a hypervisor.

//! Prepares frames for a port that does not take all of their offloads.

use std::io;

use crate::{
    Batch, Caps, DropReason, Frame, Frames, Malformed, Stats,
    offload::{self, Action},
    partial_checksum::fill_csum,
    segment::Segments,
};

/// Where frames are sent.
pub(crate) trait Outlet {
    /// Sends frames.
    fn send(&mut self, frames: Frames<'_>) -> io::Result<()>;

    /// Whether frames like this one, or its segments, are sent or wait rather than being dropped.
    fn has_room(&self, frame: &Frame) -> bool;

    /// Why there is no room.
    fn full(&self) -> DropReason {
        DropReason::NoRoom
    }
}

/// Gives `frames` to `outlet`, after doing the offloads that `caps` lacks in software. When no frame needs that, `frames`
/// are given unchanged; else clones are collected in `scratch` and given in order. Frames that cannot be are counted, and so
/// are those for which there is no room, before any work is done for them.
pub(crate) fn send(
    caps: &Caps,
    stats: &Stats,
    frames: Frames<'_>,
    scratch: &mut Batch,
    outlet: &mut dyn Outlet,
) -> io::Result<()> {
    if frames.iter().all(|frame| offload::passes(frame, caps)) {
        return outlet.send(frames);
    }
    let mut offload = SoftwareOffload { outlet, caps, scratch, malformed: 0, too_long: 0, no_room: 0 };
    let sent = frames.iter().try_for_each(|frame| offload.take(frame)).and_then(|()| offload.send());
    offload.scratch.clear();
    stats.lost(DropReason::Malformed, offload.malformed);
    stats.lost(DropReason::TooLong, offload.too_long);
    let SoftwareOffload { no_room, outlet, .. } = offload;
    stats.lost(outlet.full(), no_room);
    sent
}

struct SoftwareOffload<'a> {
    outlet: &'a mut dyn Outlet,
    caps: &'a Caps,
    scratch: &'a mut Batch,
    malformed: u64,
    too_long: u64,
    no_room: u64,
}

impl SoftwareOffload<'_> {
    fn take(&mut self, frame: &Frame) -> io::Result<()> {
        if !self.outlet.has_room(frame) {
            self.no_room += 1;
            return Ok(());
        }
        match offload::action(frame, self.caps) {
            Ok(Action::Send) => self.add(|into| {
                into.copy_from(frame);
                Ok(true)
            }),
            Ok(Action::FillChecksum) => self.add(|into| {
                into.copy_from(frame);
                fill_csum(into).map(|()| true)
            }),
            Ok(Action::Segment(segments)) => return self.cut(segments, frame),
            Err(Malformed) => {
                self.malformed += 1;
                return Ok(());
            }
        }
        .map(|_| ())
    }

    fn cut(&mut self, mut segments: Segments<'_>, frame: &Frame) -> io::Result<()> {
        loop {
            if self.scratch.room() == 0 {
                self.send()?;
                if !self.outlet.has_room(frame) {
                    self.no_room += segments.left();
                    return Ok(());
                }
            }
            if !self.add(|into| segments.next_into(into))? {
                return Ok(());
            }
        }
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
            self.outlet.send(self.scratch.all())?;
            self.scratch.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gso, GsoKind, Offload, partial_checksum::mark_blank};
    use etherparse::PacketBuilder;

    /// Has room for some frames.
    struct Bounded {
        room: usize,
        sent: usize,
    }

    impl Outlet for Bounded {
        fn send(&mut self, frames: Frames<'_>) -> io::Result<()> {
            self.sent += frames.len();
            self.room = self.room.saturating_sub(frames.len());
            Ok(())
        }

        fn has_room(&self, _: &Frame) -> bool {
            self.room > 0
        }
    }

    /// A frame of 100 segments, or one whose headers do not match, which is noticed by whoever begins to work on it.
    fn tcp(kind: GsoKind) -> Frame {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder.tcp(1, 2, 3, 4).write(&mut bytes, &[5; 50_000]).unwrap();
        let mut frame = Frame::from_slice(&bytes);
        frame.set_offload(Offload { gso: Some(Gso { kind, size: 500 }), ..Offload::NONE });
        mark_blank(&mut frame).unwrap();
        frame
    }

    fn send_two(kind: GsoKind, room: usize) -> (usize, [u64; 2]) {
        let stats = Stats::default();
        let mut outlet = Bounded { room, sent: 0 };
        let frames = [tcp(kind), tcp(kind)];
        let mut scratch = Batch::new(16);
        send(&Caps::plain(1500), &stats, Frames::of(&frames), &mut scratch, &mut outlet).unwrap();
        let counters = stats.read();
        (outlet.sent, [DropReason::NoRoom, DropReason::Malformed].map(|reason| counters.dropped(reason)))
    }

    #[test]
    fn frame_without_room_is_dropped_before_any_work() {
        assert_eq!(send_two(GsoKind::TcpV6, 0), (0, [2, 0]));
        assert_eq!(send_two(GsoKind::TcpV6, 1), (0, [0, 2]));
        assert_eq!(send_two(GsoKind::TcpV4, 1000), (200, [0, 0]));
    }

    #[test]
    fn segments_are_no_longer_made_once_there_is_no_room_for_them() {
        // Of the first frame 32 segments, and none of the second.
        assert_eq!(send_two(GsoKind::TcpV4, 20), (32, [68 + 1, 0]));
    }
}
