//! What became of the frames of one round.

/// The result of a round.
#[derive(Clone, Copy)]
pub(super) struct RoundResult {
    /// Frames sent or dropped.
    pub(super) taken: usize,
    /// Bytes of the frames placed.
    pub(super) bytes: u64,
    /// Grant copies made.
    pub(super) copies: usize,
    /// Those of `taken` that were dropped because a copy or a transfer failed, or the guest has given up no page for them.
    pub(super) failed: usize,
    /// Those of `taken` that were dropped because they need more slots than a packet may have.
    pub(super) too_long: usize,
    /// Buffers that the first frame not taken needs; 1 if all were taken.
    pub(super) needed: u32,
}

impl RoundResult {
    /// Of a round without frames.
    pub(super) const NOTHING: Self =
        Self { taken: 0, bytes: 0, copies: 0, failed: 0, too_long: 0, needed: 1 };
}
