//! The process that opens images for dom0. It has no rings and no network; dom0, which has both, then needs no path of an image, may open
//! no other file than its machine's, and sees no other process.
//!
//! dom0 starts it as a child before it gives up its own privileges ([`process`]). Each request (`protocol.rs`) comes with a socket of its
//! own for the answer, and is carried out by a thread of its own (`server.rs`): an open may take as long as a file server or the holder of
//! a lease likes. The answer is the open image's descriptors, with its locks, or the same error that an opening in dom0 would have had, and
//! in it who has the image (`holders.rs`).

mod client;
mod holders;
mod image_dirs;
mod packet;
pub mod process;
mod protocol;
mod server;

pub use client::{Opened, Opener};
pub use holders::Holder;
pub use protocol::{Below, Refusal};
