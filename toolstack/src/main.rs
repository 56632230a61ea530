//! The program `xpv`.

fn main() {}
