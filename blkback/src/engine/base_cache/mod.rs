//! A cache of the files that are below guests' own images: a base that many disks share is read from its medium once
//! (`docs/decisions/0028-*.md`). What is there is copied by a ring's own thread, by a lookup without a lock; what is not, one ring reads for
//! all who want it.

mod atomic;
mod counters;
mod engine;
mod file;
mod files;
mod shared;
mod slot;
mod table;

pub(super) use engine::CachedEngine;
pub(super) use file::CachedFile;
pub use file::{BaseCache, DiskCache, Forgotten};
pub use files::FileId;
