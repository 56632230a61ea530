//! The command line itself: help, exit codes, manual pages, completions.

use std::process::{Command, Output};

fn xpv(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xpv")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const COMMANDS: [&str; 21] = [
    "demo",
    "disk",
    "bridge",
    "network-capture",
    "up",
    "hypervisor",
    "dom0",
    "guest",
    "create",
    "destroy",
    "list",
    "block-attach",
    "block-detach",
    "block-list",
    "block-set",
    "network-attach",
    "network-detach",
    "network-list",
    "network-set",
    "man",
    "completions",
];

#[test]
fn help_names_every_command() {
    let output = xpv(&["--help"]);
    assert!(output.status.success());
    for command in COMMANDS {
        assert!(stdout(&output).contains(&format!("  {command} ")), "{command}");
        let output = xpv(&[command, "--help"]);
        assert!(output.status.success() && stdout(&output).contains("Usage: "), "{command}");
    }
    assert!(!stdout(&output).contains("demo-guest"));
}

#[test]
fn invalid_command_line_exits_with_code_2() {
    for args in
        [&["frobnicate"][..], &[], &["create"], &["list", "--colour"], &["create", "a.cfg", "--timeout", "x"]]
    {
        let output = xpv(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let output = xpv(&["man", directory.path().to_str().unwrap()]);
    assert!(output.status.success());
    for command in COMMANDS {
        let page = std::fs::read_to_string(directory.path().join(format!("xpv-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS") && page.contains(&command.replace('-', "\\-")), "{command}");
    }
    assert!(std::fs::read_to_string(directory.path().join("xpv.1")).unwrap().contains("create"));
    assert!(!directory.path().join("xpv-demo-guest.1").exists());
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = xpv(&["completions", shell]);
        assert!(output.status.success() && stdout(&output).contains("block-attach"), "{shell}");
    }
}
