//! Policies over sharing, mapping, copying and flipping granted pages.
//!
//! A front end takes its buffers from a [`share::Pool`]. A back end keeps what it maps again and again in a
//! [`persist::Cache`], copies in [`copy::Batch`]es, and flips pages by a [`flip::Sender`].

pub mod copy;
pub mod flip;
pub mod persist;
pub mod share;

pub use copy::Batch;
pub use persist::Cache;
pub use share::{Buffer, Pool};
