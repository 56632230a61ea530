//! Grant tables: `grant_table.h`.

use core::fmt;

/// A reference into the granting domain's table, `grant_ref_t` (grant_table.h:94).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct GrantRef(pub u32);

impl GrantRef {
    /// `GNTTAB_RESERVED_CONSOLE`.
    pub const CONSOLE: Self = Self(0);
    /// `GNTTAB_RESERVED_XENSTORE`.
    pub const XENSTORE: Self = Self(1);
    /// `GNTTAB_NR_RESERVED_ENTRIES`: entries below are never handed out.
    pub const FIRST_FREE: Self = Self(8);
}

impl fmt::Display for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
