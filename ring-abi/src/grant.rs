//! Grant tables: `grant_table.h`. References, statuses and map flags; entries are in [`entry`], the operations'
//! structures in [`op`].

pub mod entry;
pub mod op;

use bitflags::bitflags;
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

bitflags! {
    /// `GNTMAP_*` (grant_table.h:587): how a granted page is to be mapped.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct MapFlags: u32 {
        /// For devices: `GNTMAP_device_map`.
        const DEVICE_MAP = 1;
        /// For processors: `GNTMAP_host_map`.
        const HOST_MAP = 2;
        /// To be read only: `GNTMAP_readonly`.
        const READONLY = 4;
        /// For the current application too, not only its kernel: `GNTMAP_application_map`.
        const APPLICATION_MAP = 8;
        /// `host_addr` is the machine address of a page table's entry: `GNTMAP_contains_pte`.
        const CONTAINS_PTE = 16;
    }

    /// `GNTCOPY_*` (grant_table.h:444): which ends of a copy are grants rather than frames of our own.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct CopyFlags: u16 {
        /// `GNTCOPY_source_gref`.
        const SOURCE_GREF = 1;
        /// `GNTCOPY_dest_gref`.
        const DEST_GREF = 2;
    }
}

/// `enum grant_status`: how one operation of a batch went (grant_table.h:623).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Status(pub i16);

macro_rules! statuses {
    ($($constant:ident $c:literal = $number:literal, $words:literal;)*) => {
        impl Status {
            $(#[doc = concat!("`GNTST_", $c, "`: ", $words, ".")] pub const $constant: Self = Self($number);)*

            /// Every status there is, with Xen's name for it less `GNTST_`.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$constant, $c),)*];

            /// In words, as `GNTTABOP_error_msgs` has them.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$constant => $words,)* _ => "unknown grant status" }
            }
        }
    };
}

statuses! {
    OKAY "okay" = 0, "okay";
    GENERAL_ERROR "general_error" = -1, "undefined error";
    BAD_DOMAIN "bad_domain" = -2, "unrecognised domain id";
    BAD_GNTREF "bad_gntref" = -3, "invalid grant reference";
    BAD_HANDLE "bad_handle" = -4, "invalid mapping handle";
    BAD_VIRT_ADDR "bad_virt_addr" = -5, "invalid virtual address";
    BAD_DEV_ADDR "bad_dev_addr" = -6, "invalid device address";
    NO_DEVICE_SPACE "no_device_space" = -7, "no spare translation slot in the I/O MMU";
    PERMISSION_DENIED "permission_denied" = -8, "permission denied";
    BAD_PAGE "bad_page" = -9, "bad page";
    BAD_COPY_ARG "bad_copy_arg" = -10, "copy arguments cross page boundary";
    ADDRESS_TOO_BIG "address_too_big" = -11, "page address size too large";
    EAGAIN "eagain" = -12, "operation not done; try again";
    NO_SPACE "no_space" = -13, "out of space";
}

impl Status {
    /// Whether the operation was done.
    #[inline]
    pub fn is_okay(self) -> bool {
        self == Self::OKAY
    }

    /// `Ok` for [`Status::OKAY`], else the status as the error it is.
    ///
    /// # Errors
    /// Any other status.
    pub fn ok(self) -> Result<(), Self> {
        if self.is_okay() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.describe(), self.0)
    }
}

impl core::error::Error for Status {}
