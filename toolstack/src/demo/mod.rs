//! The demo: a machine whose two guests write, read and send data and verify every byte.
//!
//! [`driver::run`] implements `xpv demo`, [`guest::run`] each of its guests.

pub mod disk;
pub mod display;
pub mod driver;
pub mod frame;
pub mod guest;
pub mod image;
pub mod net;
pub mod pattern;
pub mod peer;
pub mod protocol;
pub mod report;
