//! The program `xpv`: store, broker, dom0 and guests from one binary, one file a command.
//!
//! A library so that its parsers can be fuzzed and its parts measured; [`run`] is all that `main` calls.

pub mod config;
pub mod error;
