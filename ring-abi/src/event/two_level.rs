//! The two-level scheme: a bit for each port in `shared_info`, and for each word of those a bit in the virtual
//! processor's `vcpu_info` (xen.h). Sizes and offsets in bytes, for 64-bit and 32-bit domains.

/// The places of one word size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of a word, `xen_ulong_t`: also words of `evtchn_pending`, divided by 8.
    pub word: usize,
    /// Ports there are: `EVTCHN_2L_NR_CHANNELS` (event_channel.h:332).
    pub channels: usize,
    /// `sizeof(struct shared_info)`.
    pub shared_info_len: usize,
    /// `shared_info.evtchn_pending`: a bit for each port, set by Xen, cleared by the domain.
    pub pending: usize,
    /// `shared_info.evtchn_mask`: a bit for each port that makes no upcall.
    pub mask: usize,
    /// `vcpu_info.evtchn_pending_sel`: a bit for each word of `pending`.
    pub pending_sel: usize,
}

impl Layout {
    /// A 64-bit domain's.
    pub const BITS64: Self =
        Self { word: 8, channels: 4096, shared_info_len: 3136, pending: 2048, mask: 2560, pending_sel: 8 };
    /// A 32-bit domain's.
    pub const BITS32: Self =
        Self { word: 4, channels: 1024, shared_info_len: 2344, pending: 2048, mask: 2176, pending_sel: 4 };
}

/// `sizeof(struct vcpu_info)`.
pub const VCPU_INFO_LEN: usize = 64;
/// `XEN_LEGACY_MAX_VCPUS`: `vcpu_info` structures at the start of `shared_info`.
pub const LEGACY_MAX_VCPUS: usize = 32;
/// `vcpu_info.evtchn_upcall_pending`, a byte: some event is pending.
pub const UPCALL_PENDING: usize = 0;
/// `vcpu_info.evtchn_upcall_mask`, a byte: no upcalls.
pub const UPCALL_MASK: usize = 1;

const _: () = {
    let a = Layout::BITS64;
    let b = Layout::BITS32;
    assert!(a.channels == a.word * 8 * a.word * 8 && b.channels == b.word * 8 * b.word * 8);
    assert!(a.pending == LEGACY_MAX_VCPUS * VCPU_INFO_LEN && a.mask == a.pending + a.channels / 8);
    assert!(b.pending == a.pending && b.mask == b.pending + b.channels / 8);
};
