//! qcow2 images. The format says where the guest's bytes are, and the engines of their files move them: `docs/decisions/0025-*.md`.
//!
//! A ring's thread (`queue`) looks where an operation's bytes are (`place`: a word for each unit of the disk), and hands parts of
//! it to the engines of the files. What it does not know, what is to be allocated, and what is compressed it asks the image's thread
//! (`worker`), which alone changes the image's tables by the crate `imago`, in an order that survives a power cut (`order`).

mod ahead;
mod chain;
mod commit;
mod compressed;
mod control;
mod create;
mod disk;
mod grace;
mod header;
mod image;
mod image_file;
mod image_format;
mod in_file;
mod jobs;
mod layer;
mod order;
mod place;
#[cfg(test)]
mod power_cut;
mod progress;
mod queue;
mod reclaim;
mod refcounts;
mod stream;
mod table_file;
mod tables;
mod worker;
mod writes;
mod written;

pub use chain::{MAX_LAYERS, OpenChain, OpenLayer};
pub use control::{ImageControl, ImageInfo};
pub use create::NewImage;
pub use disk::Qcow2Disk;
pub use header::{Backing, Compression, FormatError, HEADER_READ, Header};
pub use image_format::Format;
pub use progress::Progress;
