//! Tests the store through libxenstore (package libxen-dev), as toolstacks link it; `client.c` has the checks.

mod common;

use std::path::Path;
use std::process::Command;

use common::Running;

#[test]
fn every_call_of_libxenstore_answers_as_xenstored_does() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("client");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/client.c");
    let compiled = Command::new("gcc")
        .args(["-Wall", "-Werror", "-O1", "-o"])
        .args([&program, &source])
        .arg("-lxenstore")
        .output()
        .expect("package gcc");
    let text = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "gcc -lxenstore (package libxen-dev): {text}");
    let running = Running::new();
    let out = Command::new(&program).env("XENSTORED_PATH", running.socket()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
