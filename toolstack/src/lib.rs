//! The program `xpv`: hypervisor processes (broker and store), dom0 and guests from one binary.
//!
//! It is a library so that tests, benchmarks and fuzz targets can use its parts.

pub mod backend;
pub mod capture;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod demo;
pub mod dir;
pub mod error;
pub mod guest;
pub mod image;
mod log_limit;
pub mod machine;
pub mod nbd;
pub mod opener;
pub mod output;
pub mod sandbox;
mod serving_lock;
pub mod tap_owner;
