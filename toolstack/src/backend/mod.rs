//! What dom0's backends need: bridges for vifs, disk images for vbds, devices to leave to the kernel's own backends,
//! and the removal of stale state of earlier processes.

pub mod bridge_answers;
pub mod bridge_memory;
pub mod bridges;
pub mod governed;
pub mod image_answers;
pub mod image_changes;
pub mod image_controls;
pub mod images;
pub mod kernel_backends;
mod opening;
pub mod policy_file;
pub mod policy_in_force;
pub mod stale;
