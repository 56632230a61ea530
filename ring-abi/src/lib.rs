//! Xen's split-driver wire formats and shared descriptor rings, bit-exact and no_std
