//! Rows of the performance table, ours beside the peer's.

fn main() {}
