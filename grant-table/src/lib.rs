//! Policies over mapping and flipping granted pages.
//!
//! A backend keeps what it maps again and again in a [`persist::Cache`], and flips pages by a [`flip::Sender`].

pub mod flip;
pub mod persist;

pub use persist::Cache;
