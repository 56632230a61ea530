//! Guests on overlays of one base, on a machine of processes: what one has read of it, the others read without the medium.

mod common;

use std::fs;

use common::Machine;
use serde_json::{Value, json};
use testkit::nbd::{BLOCK, Nbd};

/// Bytes of the base.
const BASE: usize = 1 << 20;

/// A machine with such a cache, and two guests on overlays of a base in which each block says where it is.
fn machine(base_cache: &str) -> Machine {
    let machine = Machine::with(&format!("base_cache = '{base_cache}'\n"));
    let base: Vec<u8> = (0..BASE).map(|at| (at / BLOCK) as u8).collect();
    fs::write(machine.path("base.img"), base).unwrap();
    for guest in ["one", "other"] {
        let image = machine.path(&format!("{guest}.qcow2"));
        let image = image.display();
        machine.ok(["disk", "create", &image.to_string(), "--backing", "base.img"]);
        machine.create(guest, &format!("disk = ['format=qcow2,vdev=xvda,access=rw,target={image}']"));
    }
    machine
}

/// Has a guest read all of its disk.
fn read(machine: &Machine, guest: &str) {
    let mut export = Nbd::connect(&machine.dir().join(guest).join("xvda.nbd")).unwrap();
    for block in 0..BASE / BLOCK {
        assert_eq!(export.read(block as u64).unwrap(), [block as u8; BLOCK], "{guest}: {block}");
    }
}

fn base_cache(machine: &Machine, guest: &str) -> Value {
    let listed = machine.ok(["block-list", guest, "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    listed[0]["stats"]["base_cache"].clone()
}

#[test]
fn guest_reads_from_memory_what_another_one_has_read_of_their_base() {
    let machine = machine("8M");
    read(&machine, "one");
    let one = base_cache(&machine, "one");
    let counted = |name: &str| one[name].as_u64().unwrap();
    assert_eq!((counted("misses"), counted("read_bytes")), ((BASE >> 15) as u64, BASE as u64));
    assert_eq!((counted("cached_bytes"), counted("limit_bytes")), (BASE as u64, 8 << 20));
    read(&machine, "other");
    let expected = json!({
        "hits": BASE / BLOCK, "waits": 0, "misses": 0, "read_bytes": 0, "cached_bytes": BASE, "limit_bytes": 8 << 20,
    });
    assert_eq!(base_cache(&machine, "other"), expected);
}

#[test]
fn no_base_is_cached_where_none_is_to_be() {
    let machine = machine("0");
    read(&machine, "one");
    assert_eq!(base_cache(&machine, "one"), Value::Null);
}
