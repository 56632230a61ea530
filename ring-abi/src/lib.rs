//! Xen's split-driver wire formats and shared descriptor rings, bit-exact and no_std
#![no_std]

pub mod xenbus;
pub mod xs_wire;
