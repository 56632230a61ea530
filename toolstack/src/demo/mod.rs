//! The demo: a whole machine in processes, two guests that work, and proof that nothing was lost or changed.
//!
//! [`run`](drive::run) is what `xpv demo` does; [`guest`] is what each of its guests does.

pub mod disk;
pub mod drive;
pub mod frame;
pub mod guest;
pub mod image;
pub mod net;
pub mod pattern;
pub mod peer;
pub mod report;
pub mod show;
pub mod words;
