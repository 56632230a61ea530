//! The commands, one file each.

pub mod block_attach;
pub mod block_detach;
pub mod block_list;
pub mod block_set;
pub mod bridge;
pub mod completions;
pub mod create;
pub mod demo;
pub mod demo_guest;
pub mod destroy;
pub mod disk;
pub mod dom0;
pub mod guest;
pub mod hypervisor;
pub mod list;
pub mod man;
pub mod network_attach;
pub mod network_capture;
pub mod network_detach;
pub mod network_list;
pub mod network_set;
pub mod opener;
pub mod up;
