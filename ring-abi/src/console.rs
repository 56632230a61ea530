//! The console's page: `struct xencons_interface` (console.h). Offsets in bytes.

use crate::stream::{Interface, Layout};

/// What is typed: daemon to domain.
pub const IN: Layout = Layout { ring: 0, size: 1024, cons: 3072, prod: 3076 };
/// What is printed: domain to daemon.
pub const OUT: Layout = Layout { ring: 1024, size: 2048, cons: 3080, prod: 3084 };
/// [`CONNECTED`] or [`DISCONNECTED`] (Xen 4.20 and later; bytes that were never written before).
pub const CONNECTION: usize = 3088;
/// `connection`: the daemon listens.
pub const CONNECTED: u8 = 0;
/// `connection`: the backend is not connected yet.
pub const DISCONNECTED: u8 = 1;

/// Both rings, for [`crate::stream::Stream`].
pub const INTERFACE: Interface = Interface { name: "console", to_back: OUT, to_front: IN };
