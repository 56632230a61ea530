//! Domain identifiers: `domid_t` of xen.h.

use core::fmt;
use core::num::ParseIntError;
use core::str::FromStr;

/// A domain's number, `domid_t` (xen.h:593). Ordinary domains are below [`DomId::FIRST_RESERVED`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// The control domain.
    pub const DOM0: Self = Self(0);
    /// `DOMID_FIRST_RESERVED`: this number and those above name no ordinary domain.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// `DOMID_SELF`: the caller itself.
    pub const SELF: Self = Self(0x7ff0);
}

impl FromStr for DomId {
    type Err = ParseIntError;

    /// Parses a decimal number, as paths and keys of the store hold it.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
