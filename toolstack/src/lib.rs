//! The program `xpv`: store, broker, dom0 and guests from one binary, one file a command.
//!
//! A library so that its parsers can be fuzzed and its parts measured; `main` is one call.

pub mod backend;
pub mod cli;
pub mod commands;
pub mod config;
pub mod demo;
pub mod dir;
pub mod error;
pub mod guest;
pub mod machine;
pub mod nbd;
mod output;
pub mod tap_owner;
