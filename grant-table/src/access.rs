//! What a grant permits.

/// What a grant permits, or a mapping requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// `GTF_readonly`, `GNTMAP_readonly`.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}
