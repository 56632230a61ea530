//! Debian's xenstore tools on the store of a running machine: the nodes are laid out as by libxl.

mod common;

use common::Machine;
use common::netns::two_guests;
use common::program::{program, run};

/// The nodes of a guest with an interface and a disk, as `libxl__domain_make` and `libxl__device_generic_add` of
/// Xen's libxl write them and the drivers' protocols (xen/include/public/io) add to them. DOM is its number, XVDB
/// 51728. A `*` stands for any value.
const LAYOUT: &str = r#"
/local/domain/DOM/name = "alice" (n0,rDOM)
/local/domain/DOM/domid = "DOM" (n0,rDOM)
/local/domain/DOM/vm = * (n0,rDOM)
/local/domain/DOM/control = "" (n0,rDOM)
/local/domain/DOM/data = "" (nDOM)
/local/domain/DOM/device = "" (n0,rDOM)
/local/domain/DOM/device/vbd/51728 = "" (nDOM,r0)
/local/domain/DOM/device/vbd/51728/backend = "/local/domain/0/backend/vbd/DOM/51728" (nDOM,r0)
/local/domain/DOM/device/vbd/51728/backend-id = "0" (nDOM,r0)
/local/domain/DOM/device/vbd/51728/state = "4" (nDOM,r0)
/local/domain/DOM/device/vbd/51728/virtual-device = "51728" (nDOM,r0)
/local/domain/DOM/device/vbd/51728/device-type = "disk" (nDOM,r0)
/local/domain/DOM/device/vbd/51728/*event-channel = * (nDOM,r0)
/local/domain/DOM/device/vbd/51728/protocol = "x86_64-abi" (nDOM,r0)
/local/domain/DOM/device/vif/0/backend = "/local/domain/0/backend/vif/DOM/0" (nDOM,r0)
/local/domain/DOM/device/vif/0/mac = "00:16:3e:00:00:01" (nDOM,r0)
/local/domain/DOM/device/vif/0/handle = "0" (nDOM,r0)
/local/domain/DOM/device/vif/0/mtu = "1500" (n0,rDOM)
/local/domain/DOM/device/vif/0/state = "4" (nDOM,r0)
/local/domain/0/name = "Domain-0" (n0)
/local/domain/0/backend/vbd/DOM/51728 = "" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/frontend = "/local/domain/DOM/device/vbd/51728" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/frontend-id = "DOM" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/online = "1" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/state = "4" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/params = "IMAGE" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/dev = "xvdb" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/mode = "w" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/sectors = "2048" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/sector-size = "512" (n0,rDOM)
/local/domain/0/backend/vbd/DOM/51728/feature-flush-cache = "1" (n0,rDOM)
/local/domain/0/backend/vif/DOM/0/frontend = "/local/domain/DOM/device/vif/0" (n0,rDOM)
/local/domain/0/backend/vif/DOM/0/bridge = "xenbr0" (n0,rDOM)
/local/domain/0/backend/vif/DOM/0/mac = "00:16:3e:00:00:01" (n0,rDOM)
/local/domain/0/backend/vif/DOM/0/handle = "0" (n0,rDOM)
/local/domain/0/backend/vif/DOM/0/state = "4" (n0,rDOM)
/local/domain/0/backend/vif/DOM/0/feature-rx-copy = "1" (n0,rDOM)
/libxl/DOM/device/vbd/51728/frontend = "/local/domain/DOM/device/vbd/51728" (n0)
/libxl/DOM/device/vbd/51728/backend = "/local/domain/0/backend/vbd/DOM/51728" (n0)
/libxl/DOM/device/vif/0/backend = "/local/domain/0/backend/vif/DOM/0" (n0)
"#;

#[test]
fn xenstore_ls_shows_the_layout_of_libxl() {
    let machine = Machine::new();
    let _namespaces = two_guests(&machine);
    let image = machine.image("b.img", 1 << 20);
    machine.ok(["block-attach", "alice", &format!("vdev=xvdb,target={}", image.display())]);
    let list: serde_json::Value = serde_json::from_str(&machine.ok(["list", "--json", "alice"])).unwrap();
    let domid = list[0]["domid"].to_string();
    let ls = tool(&machine, "xenstore-ls", &["-f", "-p"]);
    let lines: Vec<String> =
        ls.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for wanted in LAYOUT.trim().lines() {
        let wanted = wanted.replace("DOM", &domid).replace("IMAGE", image.to_str().unwrap());
        assert!(lines.iter().any(|line| is_like(line, &wanted)), "no {wanted:?} in\n{ls}");
    }
    machine.ok(["destroy", "alice"]);
    let ls = tool(&machine, "xenstore-ls", &["-f"]);
    let of_alice =
        |path: &str| path.split('/').nth(3) == Some(&domid) || path.contains(&format!("/{domid}/"));
    let left: Vec<&str> =
        ls.lines().map(|l| l.split(' ').next().unwrap()).filter(|path| of_alice(path)).collect();
    assert!(left.is_empty() && !ls.contains("\"alice\""), "{left:?} in\n{ls}");
    assert_eq!(tool(&machine, "xenstore-read", &["/local/domain/0/name"]), "Domain-0\n");
}

/// Whether a line is as wanted, where a `*` is anything: with several processors a disk's rings have keys below `queue-N`.
fn is_like(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split('*');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    parts.all(|part| rest.find(part).map(|at| rest = &rest[at + part.len()..]).is_some()) && rest.is_empty()
}

/// Runs one of Debian's xenstore tools and returns its output; XENSTORED_PATH is the socket's path.
fn tool(machine: &Machine, name: &str, args: &[&str]) -> String {
    let mut tool = program(name, "xenstore-utils");
    run(tool.args(args).env("XENSTORED_PATH", machine.dir().join("xenstored.sock")))
}
