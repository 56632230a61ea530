//! Tests the store with Debian's tools (package xenstore-utils).

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use common::Running;
use xenstore::{Access, DomId, Nodes, Permission};

/// A tool's command. XENSTORED_PATH is the path of the socket for libxenstore.
fn tool(running: &Running, args: &[&str]) -> Command {
    let mut command = Command::new(format!("xenstore-{}", args[0]));
    command.args(&args[1..]).env("XENSTORED_PATH", running.socket()).stdin(Stdio::null());
    command
}

fn output(running: &Running, args: &[&str]) -> std::process::Output {
    tool(running, args)
        .output()
        .unwrap_or_else(|e| panic!("xenstore-{} (package xenstore-utils): {e}", args[0]))
}

/// Runs a tool, which must succeed, and returns its output.
fn run(running: &Running, args: &[&str]) -> String {
    let out = output(running, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn fails(running: &Running, args: &[&str]) -> String {
    let out = output(running, args);
    assert!(!out.status.success(), "{args:?} succeeded: {}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn write_read_list_exists_and_rm() {
    let running = Running::new();
    run(&running, &["write", "/a/b", "one", "/a/c", "two"]);
    assert_eq!(run(&running, &["read", "/a/b", "/a/c"]), "one\ntwo\n");
    assert_eq!(run(&running, &["read", "-p", "/a/b"]), "/a/b: one\n");
    assert_eq!(run(&running, &["list", "/a"]), "b\nc\n");
    run(&running, &["exists", "/a/b"]);
    fails(&running, &["exists", "/a/x"]);
    assert!(fails(&running, &["read", "/a/x"]).contains("couldn't read path /a/x"));
    run(&running, &["rm", "/a/b"]);
    assert_eq!(run(&running, &["list", "/a"]), "c\n");
    // -t removes a parent that has become empty.
    run(&running, &["write", "/p/q/r", "x"]);
    run(&running, &["rm", "-t", "/p/q/r"]);
    fails(&running, &["exists", "/p"]);
    // The tools write bytes that are no text as escapes.
    run(&running, &["write", "/raw", r"\x01\n"]);
    assert_eq!(running.dom0().read("/raw").unwrap(), [1, b'\n']);
}

#[test]
fn ls_shows_nodes_with_permissions() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    dom0.write("/local/domain/1/device/vbd/51712/state", "4").unwrap();
    dom0.set_perms(
        "/local/domain/1/device",
        &[Permission::new(DomId(1), Access::None), Permission::new(DomId(0), Access::Read)],
    )
    .unwrap();
    let ls = run(&running, &["ls", "-fp"]);
    let lines: Vec<&str> = ls.lines().map(str::trim_end).collect();
    for line in [
        r#"/tool = ""   (n0)"#,
        r#"/local/domain/1/device = ""   (n1,r0)"#,
        r#"/local/domain/1/device/vbd/51712/state = "4"   (n0)"#,
    ] {
        assert!(lines.contains(&line), "no {line:?} in\n{ls}");
    }
    let tree = run(&running, &["ls", "/local/domain/1"]);
    assert_eq!(tree, "device = \"\"\n vbd = \"\"\n  51712 = \"\"\n   state = \"4\"\n");
}

#[test]
fn chmod_sets_enforced_permissions() {
    let running = Running::new();
    run(&running, &["write", "/shared/x", "v"]);
    run(&running, &["chmod", "-r", "/shared", "n0", "r1"]);
    let mut one = running.domain(1);
    assert_eq!(one.read("/shared/x").unwrap(), b"v");
    assert!(one.write("/shared/x", "w").is_err());
    run(&running, &["chmod", "/shared/x", "n0", "b1"]);
    one.write("/shared/x", "w").unwrap();
    assert_eq!(run(&running, &["read", "/shared/x"]), "w\n");
}

#[test]
fn directory_of_thousands_is_listed() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    for n in 0..1500 {
        dom0.mkdir(&format!("/many/{n}")).unwrap();
    }
    assert_eq!(run(&running, &["list", "/many"]).lines().count(), 1500);
    assert_eq!(run(&running, &["ls", "/many"]).lines().count(), 1500);
}

/// A running tool, killed when it is dropped.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn watch_prints_events_as_they_come() {
    let running = Running::new();
    let mut command = tool(&running, &["watch", "-n", "3", "/w"]);
    let mut child = Background(command.stdout(Stdio::piped()).spawn().expect("package xenstore-utils"));
    let mut out = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "/w\n");
    run(&running, &["write", "/w/x", "1"]);
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "/w/x\n");
    run(&running, &["rm", "/w"]);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "/w\n");
    assert!(child.0.wait().unwrap().success());
}
