//! The frames that one port receives in one round, and the part of them that goes to another port.

use crate::Frame;

/// A bounded list of frames, which are written in place: their memory is reused from round to round.
///
/// ```
/// use bridge::Batch;
///
/// let mut batch = Batch::new(64);
/// batch.slot().expect("an empty batch").set_slice(&[0; 60]);
/// assert_eq!((batch.len(), batch.room(), batch.bytes()), (1, 63, 60));
/// ```
#[derive(Debug)]
pub struct Batch {
    frames: Vec<Frame>,
    len: usize,
    /// Most frames.
    limit: usize,
}

impl Batch {
    /// Makes a batch of up to `limit` frames (at most 65,535), all allocated here.
    pub fn new(limit: usize) -> Batch {
        let limit = limit.min(usize::from(u16::MAX));
        Batch { frames: (0..limit).map(|_| Frame::new()).collect(), len: 0, limit }
    }

    /// Adds an empty frame and returns it to be filled; `None` when the batch is full.
    #[inline]
    pub fn slot(&mut self) -> Option<&mut Frame> {
        if self.len >= self.limit {
            return None;
        }
        let frame = self.frames.get_mut(self.len)?;
        self.len += 1;
        Some(frame)
    }

    /// Removes the frame that was added last.
    #[inline]
    pub fn undo(&mut self) {
        if self.len > 0 {
            self.len -= 1;
            self.frames[self.len].clear();
        }
    }

    /// Number of frames that can be added.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.len)
    }

    /// Lets the batch have at most `limit` frames, and no more than it was made for.
    pub fn limit(&mut self, limit: usize) {
        self.limit = limit.min(self.frames.len());
    }

    /// Number of frames in the batch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch has no frame.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The batch's frames.
    #[inline]
    pub fn frames(&self) -> &[Frame] {
        &self.frames[..self.len]
    }

    /// The batch's frames, to be changed.
    #[inline]
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        &mut self.frames[..self.len]
    }

    /// Keeps the frames for which `keep` returns true, in order, and empties the others.
    pub fn retain(&mut self, mut keep: impl FnMut(&Frame) -> bool) {
        let mut kept = 0;
        for index in 0..self.len {
            if keep(&self.frames[index]) {
                self.frames.swap(kept, index);
                kept += 1;
            }
        }
        self.frames[kept..self.len].iter_mut().for_each(Frame::clear);
        self.len = kept;
    }

    /// The batch's frames, to be sent to a port.
    pub fn all(&self) -> Frames<'_> {
        Frames { frames: self.frames(), indices: None }
    }

    /// Bytes of all frames.
    pub fn bytes(&self) -> u64 {
        self.frames().iter().map(|frame| frame.len() as u64).sum()
    }

    /// Removes all frames, which releases their pages.
    pub fn clear(&mut self) {
        self.frames[..self.len].iter_mut().for_each(Frame::clear);
        self.len = 0;
    }
}

/// The frames of a batch that go to one port, by their indices in the batch.
#[derive(Debug, Default)]
pub struct PortBatch {
    indices: Vec<u16>,
}

impl PortBatch {
    /// Adds the frame at `index`.
    #[inline]
    pub fn push(&mut self, index: u16) {
        self.indices.push(index);
    }

    /// Whether no frame goes to the port.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The frames' indices.
    pub(crate) fn indices(&self) -> &[u16] {
        &self.indices
    }

    /// Removes all indices.
    pub fn clear(&mut self) {
        self.indices.clear();
    }

    /// The frames of `batch` that go to the port; indices beyond its end are left out.
    pub fn view<'a>(&'a self, batch: &'a Batch) -> Frames<'a> {
        Frames { frames: batch.frames(), indices: Some(&self.indices) }
    }
}

/// Frames borrowed by a port to be sent. A port that cannot send a frame now may queue a clone of it.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    frames: &'a [Frame],
    indices: Option<&'a [u16]>,
}

impl<'a> Frames<'a> {
    /// Makes a view of all of `frames`.
    pub fn of(frames: &'a [Frame]) -> Frames<'a> {
        Frames { frames, indices: None }
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.indices.map_or(self.frames.len(), <[u16]>::len)
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `count` of them.
    pub(crate) fn first(self, count: usize) -> Frames<'a> {
        match self.indices {
            Some(indices) => Frames { indices: Some(&indices[..count.min(indices.len())]), ..self },
            None => Frames { frames: &self.frames[..count.min(self.frames.len())], ..self },
        }
    }

    /// The frames in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &'a Frame> + use<'a> {
        let Frames { frames, indices } = *self;
        (0..self.len()).filter_map(move |i| match indices {
            Some(indices) => frames.get(usize::from(indices[i])),
            None => frames.get(i),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_batch_views_its_frames_in_order() {
        let mut batch = Batch::new(3);
        for i in 0..3 {
            batch.slot().unwrap().set_slice(&[i; 20]);
        }
        assert!(batch.slot().is_none());
        let mut port_batch = PortBatch::default();
        for index in [2, 0, 9] {
            port_batch.push(index);
        }
        let seen: Vec<u8> = port_batch.view(&batch).iter().map(|frame| frame.head()[0]).collect();
        assert_eq!(seen, [2, 0]);
        assert_eq!(batch.all().len(), 3);
    }

    #[test]
    fn retain_keeps_order_and_empties_other_frames() {
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
