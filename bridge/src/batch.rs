//! The frames that one port yields in one round, and what of them goes where.

use crate::Frame;

/// A bounded list of frames whose memory is kept from round to round: frames are written in place.
#[derive(Debug)]
pub struct Batch {
    frames: Vec<Frame>,
    len: usize,
}

impl Batch {
    /// Room for `limit` frames (at most 65,535), allocated now and never again.
    pub fn new(limit: usize) -> Batch {
        let limit = limit.min(usize::from(u16::MAX));
        Batch { frames: (0..limit).map(|_| Frame::new()).collect(), len: 0 }
    }

    /// Adds an empty frame and lends it to be filled; nothing when the batch is full.
    #[inline]
    pub fn slot(&mut self) -> Option<&mut Frame> {
        let frame = self.frames.get_mut(self.len)?;
        self.len += 1;
        Some(frame)
    }

    /// Takes back the frame that was added last.
    #[inline]
    pub fn undo(&mut self) {
        if self.len > 0 {
            self.len -= 1;
            self.frames[self.len].clear();
        }
    }

    /// How many more frames it takes.
    pub fn room(&self) -> usize {
        self.frames.len() - self.len
    }

    /// How many frames are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no frame is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The frames in it.
    #[inline]
    pub fn frames(&self) -> &[Frame] {
        &self.frames[..self.len]
    }

    /// The frames in it, all at once to be changed.
    #[inline]
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        &mut self.frames[..self.len]
    }

    /// Keeps the frames that `keep` is true of, in order, and empties the others.
    pub fn retain(&mut self, mut keep: impl FnMut(&Frame) -> bool) {
        let mut kept = 0;
        for place in 0..self.len {
            if keep(&self.frames[place]) {
                self.frames.swap(kept, place);
                kept += 1;
            }
        }
        self.frames[kept..self.len].iter_mut().for_each(Frame::clear);
        self.len = kept;
    }

    /// The frames in it, as a port is sent them.
    pub fn all(&self) -> Frames<'_> {
        Frames { frames: self.frames(), picked: None }
    }

    /// Bytes in all its frames.
    pub fn bytes(&self) -> u64 {
        self.frames().iter().map(|frame| frame.len() as u64).sum()
    }

    /// Empties it, which lets go of all pages its frames held.
    pub fn clear(&mut self) {
        self.frames[..self.len].iter_mut().for_each(Frame::clear);
        self.len = 0;
    }
}

/// Which frames of a batch go to one port, by their places in it.
#[derive(Debug, Default)]
pub struct Outbox {
    picked: Vec<u16>,
}

impl Outbox {
    /// Adds the frame at `place`.
    #[inline]
    pub fn push(&mut self, place: u16) {
        self.picked.push(place);
    }

    /// Whether no frame was picked.
    pub fn is_empty(&self) -> bool {
        self.picked.is_empty()
    }

    /// Forgets all places.
    pub fn clear(&mut self) {
        self.picked.clear();
    }

    /// The picked frames of `batch`; places beyond its end are left out.
    pub fn view<'a>(&'a self, batch: &'a Batch) -> Frames<'a> {
        Frames { frames: batch.frames(), picked: Some(&self.picked) }
    }
}

/// Frames lent to a port to be sent. A port that cannot send one now may keep a clone of it.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    frames: &'a [Frame],
    picked: Option<&'a [u16]>,
}

impl<'a> Frames<'a> {
    /// All of `frames`.
    pub fn of(frames: &'a [Frame]) -> Frames<'a> {
        Frames { frames, picked: None }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.picked.map_or(self.frames.len(), <[u16]>::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frames in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &'a Frame> + use<'a> {
        let Frames { frames, picked } = *self;
        (0..self.len()).filter_map(move |i| match picked {
            Some(picked) => frames.get(usize::from(picked[i])),
            None => frames.get(i),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_shows_what_it_picked_in_order() {
        let mut batch = Batch::new(3);
        for i in 0..3 {
            batch.slot().unwrap().set_slice(&[i; 20]);
        }
        assert!(batch.slot().is_none());
        let mut outbox = Outbox::default();
        for place in [2, 0, 9] {
            outbox.push(place);
        }
        let seen: Vec<u8> = outbox.view(&batch).iter().map(|frame| frame.head()[0]).collect();
        assert_eq!(seen, [2, 0]);
        assert_eq!(batch.all().len(), 3);
    }

    #[test]
    fn retain_keeps_the_order_and_empties_the_rest() {
        let mut batch = Batch::new(5);
        for i in 0..5 {
            batch.slot().unwrap().set_slice(&[i; 20]);
        }
        batch.retain(|frame| frame.head()[0] % 2 == 1);
        let seen: Vec<u8> = batch.frames_mut().iter().map(|frame| frame.head()[0]).collect();
        assert_eq!(seen, [1, 3]);
        assert_eq!((batch.room(), batch.slot().unwrap().len()), (3, 0));
    }

    #[test]
    fn undo_and_clear_leave_empty_slots() {
        let mut batch = Batch::new(2);
        batch.slot().unwrap().set_slice(&[1; 200]);
        batch.undo();
        assert!(batch.is_empty());
        assert_eq!(batch.slot().unwrap().len(), 0);
        batch.clear();
        assert_eq!((batch.len(), batch.room()), (0, 2));
    }
}
