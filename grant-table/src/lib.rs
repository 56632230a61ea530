//! Policies over mapping and flipping granted pages.
//!
//! A backend keeps the pages of persistent grants mapped in a [`persist::Cache`], and flips pages with a
//! [`flip::Sender`].

pub mod flip;
pub mod persist;

pub use persist::Cache;
