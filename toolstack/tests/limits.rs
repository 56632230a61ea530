//! What a full disk, a closed log and a limit of the system cost: log lines and single requests.

mod common;

use std::fs::File;
use std::process::Stdio;

use common::program::{program, run};
use common::{Machine, command};
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;

fn create(machine: &Machine, image: &str) {
    machine.create("web", &format!("disk=['vdev=xvda,target={}']", machine.image(image, 16 * MIB).display()));
}

#[test]
fn machine_whose_log_cannot_be_written_serves() {
    let machine = Machine::logging_to(File::options().write(true).open("/dev/full").unwrap());
    create(&machine, "a.img");
    machine.image("b.img", 16 * MIB);
    machine.ok(["block-attach", "web", &format!("{},raw,xvdb,rw", machine.path("b.img").display())]);
    let killed = machine.kill_dom0();
    let disk = format!("{},raw,xvdc,rw", machine.image("c.img", 16 * MIB).display());
    machine.ok(["block-attach", "web", &disk]);
    assert_ne!(machine.pid("Domain-0"), Some(killed));
    let mut client = Nbd::connect(&machine.dir().join("web/xvdb.nbd")).unwrap();
    client.send_write(1, &[7; BLOCK]).unwrap();
    client.written().unwrap();
}

#[test]
fn command_whose_output_cannot_be_written_fails_with_an_error() {
    let machine = Machine::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command(&machine.dir()).arg("list").stdout(Stdio::from(full)).output().unwrap();
    let error = common::one_line(&common::texts(&output).1);
    assert_eq!((output.status.code(), error.contains("standard output")), (Some(1), true), "{error}");
}

#[test]
fn command_whose_output_nobody_reads_ends_without_a_word() {
    let machine = Machine::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(&machine.dir()).arg("list").stdout(Stdio::from(writer)).output().unwrap();
    assert_eq!((output.status.code(), common::texts(&output).1.as_str()), (Some(141), ""));
}

#[test]
fn write_beyond_the_file_size_limit_fails_alone() {
    let machine = Machine::new();
    let dom0 = machine.pid("Domain-0");
    let mut limit = program("prlimit", "util-linux");
    run(limit.args(["--pid", &dom0.unwrap().to_string(), &format!("--fsize={}", 4 * MIB)]));
    create(&machine, "a.img");
    let mut client = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    client.send_write(8 * MIB / BLOCK as u64, &[7; BLOCK]).unwrap();
    assert!(client.written().is_err());
    client.send_write(1, &[7; BLOCK]).unwrap();
    client.written().unwrap();
    assert_eq!(machine.pid("Domain-0"), dom0);
}
