//! Facts about Xen's C headers, checked by the C compiler.

use std::io::Write;
use std::process::{Command, Stdio};

/// Compiles C source without linking it; panics with the compiler's message if that fails. `width` is `-m64` or `-m32`.
pub(crate) fn check(width: &str, source: &str) {
    // Freestanding: the compiler's own headers suffice, no 32-bit libc is needed.
    let mut gcc = Command::new("gcc")
        .args([width, "-std=gnu11", "-fsyntax-only", "-ffreestanding", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("package gcc");
    gcc.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let out = gcc.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "packages gcc, linux-libc-dev and libxen-dev, {width}: {text}");
}
