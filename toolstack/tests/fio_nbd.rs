//! Standard programs on a guest's disk: fio verifies it while another disk is attached and detached, and qemu-img compares
//! the export with the image.

mod common;

use std::process::Command;

use common::Machine;
use common::program::{program, run};

const MIB: u64 = 1 << 20;

/// The command that writes to an export and verifies it, with fio's NBD engine.
fn fio(uri: &str, name: &str) -> Command {
    let mut fio = program("fio", "fio");
    fio.args(["--ioengine=nbd", "--rw=randrw", "--bsrange=4k-128k", "--bs_unaligned=0", "--iodepth=16"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--size=64m", "--loops=2"]);
    fio.arg(format!("--name={name}")).arg(format!("--uri={uri}"));
    fio
}

#[test]
fn disk_written_while_another_is_hotplugged_verifies() {
    let machine = Machine::new();
    let a = machine.image("a.img", 64 * MIB);
    let b = machine.image("b.img", 16 * MIB);
    machine.create("web", &format!("disk=['vdev=xvda,target={}']", a.display()));
    let uri = machine.nbd("web", "xvda");
    std::thread::scope(|scope| {
        let fio = scope.spawn(|| run(&mut fio(&uri, "steady")));
        let mut rounds = 0;
        while !fio.is_finished() || rounds < 3 {
            machine.ok(["block-attach", "web", &format!("vdev=xvdb,target={}", b.display())]);
            let mut write = program("qemu-io", "qemu-utils");
            let pattern = format!("write -P {} 0 8M", rounds % 255 + 1);
            write.args(["-f", "raw", "-c", &pattern, "-c", "flush"]).arg(machine.nbd("web", "xvdb"));
            run(&mut write);
            machine.ok(["block-detach", "web", "xvdb"]);
            let bytes = std::fs::read(&b).unwrap();
            assert!(bytes[..8 << 20].iter().all(|byte| *byte == (rounds % 255 + 1) as u8), "round {rounds}");
            rounds += 1;
        }
        fio.join().unwrap();
    });
    let mut compare = program("qemu-img", "qemu-utils");
    let stdout = run(compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(&uri).arg(&a));
    assert_eq!(stdout, "Images are identical.\n");
}

#[test]
fn read_only_disk_has_its_size_and_refuses_writes() {
    let machine = Machine::new();
    let image = machine.image("a.img", MIB);
    machine.create("web", &format!("disk=['vdev=xvda,access=ro,target={}']", image.display()));
    let mut info = program("qemu-img", "qemu-utils");
    let stdout = run(info.args(["info", "--output=json", "-f", "raw"]).arg(machine.nbd("web", "xvda")));
    let info: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(info["virtual-size"], MIB);
    let mut write = program("qemu-io", "qemu-utils");
    let output =
        write.args(["-f", "raw", "-c", "write 0 512"]).arg(machine.nbd("web", "xvda")).output().unwrap();
    assert!(!output.status.success(), "a read-only disk was written: {output:?}");
    let list: serde_json::Value = serde_json::from_str(&machine.ok(["block-list", "web", "--json"])).unwrap();
    assert_eq!((&list[0]["mode"], &list[0]["state"]), (&"r".into(), &4.into()));
}
