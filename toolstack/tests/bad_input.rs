//! Whatever is wrong with what the user wrote: one clear line, exit code 1, and nothing half-created.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Machine, command, one_line, texts};
use serde_json::Value;

/// A machine, and how it was before.
struct Before {
    machine: Machine,
    nodes: Vec<(String, String)>,
    domains: Value,
    directory: Vec<PathBuf>,
}

impl Before {
    fn new(machine: Machine) -> Before {
        // The lock that creations take is there from the first one on.
        machine.file("run/create.lock", "");
        let mut before = Before { machine, nodes: Vec::new(), domains: Value::Null, directory: Vec::new() };
        (before.nodes, before.domains, before.directory) = before.now();
        before
    }

    fn now(&self) -> (Vec<(String, String)>, Value, Vec<PathBuf>) {
        let list: Value = serde_json::from_str(&self.machine.ok(["list", "--json"])).unwrap();
        let names = list.as_array().unwrap().iter().map(|d| d["name"].clone()).collect();
        let mut directory: Vec<PathBuf> =
            std::fs::read_dir(self.machine.dir()).unwrap().map(|e| e.unwrap().path()).collect();
        directory.sort();
        // Directories that only hold others stay where devices have been; they are nobody's.
        let nodes = self.machine.nodes().into_iter().filter(|(path, value)| !is_shelf(path, value)).collect();
        (nodes, names, directory)
    }

    /// The complaint of a command that must change nothing.
    fn complaint<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let complaint = self.machine.fails(args);
        self.is_unchanged();
        complaint
    }

    fn is_unchanged(&self) {
        let (nodes, domains, directory) = self.now();
        assert_eq!(nodes, self.nodes);
        assert_eq!(domains, self.domains);
        assert_eq!(directory, self.directory);
    }

    /// The complaint about a guest's cfg.
    fn create(&self, cfg: &str) -> String {
        let path = self.machine.file("bad.cfg", cfg);
        let said = self.complaint([Path::new("create"), &path]);
        said.replace(&path.display().to_string(), "bad.cfg")
    }
}

fn is_shelf(path: &str, value: &str) -> bool {
    value.is_empty()
        && ["/local/domain/0/error", "/local/domain/0/backend"].iter().any(|p| path.starts_with(p))
}

#[test]
fn guests_that_cannot_be_created() {
    let before = Before::new(Machine::new());
    let image = before.machine.image("a.img", 1 << 20);
    let image = image.display();
    let missing = "name='x'\ndisk=['vdev=xvda,target=/no/such.img']";
    let said = before.create(missing);
    assert!(said.starts_with("xpv: bad.cfg: disk: /no/such.img: opening it"), "{said}");
    assert!(said.contains("No such file"), "{said}");
    let cases = [
        ("name='x'\ndisk=['vdev=xvda,target=/']".into(), "disk: target: found \"/\", expected an image file"),
        (
            format!("name='x'\ndisk=['{image},raw,xvda,rx']"),
            "xpv: bad.cfg:2: disk: access: found \"rx\", expected ro",
        ),
        (
            format!("name='x'\ndisk=['{image},qcow2,xvda']"),
            "disk: format: found \"qcow2\", expected raw (other",
        ),
        (
            format!("name='x'\ndisk=[\n'{image},,xvda',\n'{image},,xvda']"),
            "bad.cfg:4: disk: vdev: found \"xvda\"",
        ),
        ("name='x'\ncolour='red'".into(), "bad.cfg:2: syntax: found \"colour\", expected name, disk, vif"),
        ("name='x'\nvif=['mac=zz']".into(), "bad.cfg:2: vif: mac: found \"zz\", expected an address"),
        ("disk=[]".into(), "bad.cfg: name: missing, expected the guest's name"),
        (
            "name='x'\nvif=['bridge=nobr']".into(),
            "vif: bridge: found \"nobr\", expected a bridge of dom0: xenbr0",
        ),
        ("name='Domain-0'".into(), "the name \"Domain-0\" is taken by domain 0"),
    ];
    for (cfg, expected) in cases {
        let said = before.create(&cfg);
        assert!(said.contains(expected), "{cfg}: {said}");
    }
    let said = before.complaint(["create", "/no/such.cfg"]);
    assert!(said.starts_with("xpv: /no/such.cfg: reading the guest's cfg: No such file"), "{said}");
}

#[test]
fn an_image_that_is_nobodys_to_read() {
    let before = Before::new(Machine::new());
    let image = before.machine.image("a.img", 1 << 20);
    // What mode bits do not keep from root, these do from everybody.
    std::fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let cfg = format!("name='x'\ndisk=['vdev=xvda,target={}']", image.display());
    if nix::unistd::geteuid().is_root() {
        let cfg = before.machine.file("bad.cfg", &cfg);
        let said = as_nobody(&before.machine, &cfg);
        assert!(said.contains("Permission denied"), "{said}");
    } else {
        let said = before.create(&cfg);
        assert!(said.contains("Permission denied"), "{said}");
    }
    before.is_unchanged();
}

/// The complaint of `create` without root's privileges over files.
fn as_nobody(machine: &Machine, cfg: &Path) -> String {
    let mut setpriv = common::program::program("setpriv", "util-linux");
    setpriv.args(["--bounding-set", "-all", "--inh-caps", "-all"]).arg(env!("CARGO_BIN_EXE_xpv"));
    let output = setpriv.arg("--dir").arg(machine.dir()).arg("create").arg(cfg).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    one_line(&texts(&output).1)
}

#[test]
fn taps_without_permission() {
    let before = Before::new(Machine::new());
    let cfg = before.machine.file("tap.cfg", "name='x'\nvif=['']");
    // In a user namespace of its own nobody has rights over the network namespace outside.
    let mut unshare: Command = common::program::program("unshare", "util-linux");
    unshare.arg("-r").arg(env!("CARGO_BIN_EXE_xpv")).arg("--dir").arg(before.machine.dir());
    let output = unshare.arg("create").arg(&cfg).output().unwrap();
    let said = one_line(&texts(&output).1);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("xpv: vif 0: no permission to make tap \"vif"), "{said}");
    before.is_unchanged();
}

#[test]
fn names_and_devices_that_are_taken() {
    let machine = Machine::new();
    let (a, b) = (machine.image("a.img", 1 << 20), machine.image("b.img", 1 << 20));
    machine.create("web", &format!("disk=['{},,xvda']", a.display()));
    let before = Before::new(machine);
    let said = before.create(&format!("name='web'\ndisk=['{},,xvda']", b.display()));
    assert!(said.contains("the name \"web\" is taken by domain 1"), "{said}");
    let said = before.complaint(["block-attach", "web", &format!("vdev=xvda,target={}", b.display())]);
    assert!(said.contains("domain 1 has a vbd with the number 51712 already"), "{said}");
    let said = before.complaint(["block-attach", "web", &format!("vdev=xvdb,target={}", a.display())]);
    assert!(said.starts_with("xpv: disk xvdb: ") && said.contains("a.img"), "{said}");
    let cases: [(&[&str], &str); 8] = [
        (&["block-attach", "nobody", "vdev=xvdb,target=/dev/null"], "disk: target: found \"/dev/null\""),
        (&["block-attach", "web", "/no/such.img,,xvdb"], "DISK: disk: /no/such.img: opening it"),
        (&["block-attach", "web", "/no/such.img,,floppy"], "DISK: disk: vdev: found \"floppy\""),
        (&["block-detach", "web", "xvdz"], "web has no disk xvdz"),
        (&["block-list", "nobody"], "there is no domain \"nobody\""),
        (
            &["network-attach", "web", "bridge=nobr"],
            "VIF: vif: bridge: found \"nobr\", expected a bridge of dom0",
        ),
        (&["network-detach", "web", "0"], "web has no vif 0"),
        (&["destroy", "Domain-0"], "Domain-0 is not a guest"),
    ];
    for (args, expected) in cases {
        let said = before.complaint(args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}

#[test]
fn machines_that_are_not_there_or_there_already() {
    let machine = Machine::new();
    let output = command(&machine.dir()).arg("hypervisor").output().unwrap();
    let said = one_line(&texts(&output).1);
    assert!(said.contains("another broker runs in"), "{said}");
    let output = command(&machine.dir()).arg("dom0").output().unwrap();
    let said = texts(&output).1;
    assert!(said.contains("is domain 0 already"), "{said}");
    machine.ok(["list"]);
    let nowhere = machine.path("nowhere");
    let output = command(&nowhere).arg("list").output().unwrap();
    let said = one_line(&texts(&output).1);
    assert!(said.starts_with("xpv: no machine runs in ") && said.contains("xpv up"), "{said}");
    assert!(!nowhere.exists());
}

#[test]
fn hosts_that_cannot_be() {
    let directory = tempfile::tempdir().unwrap();
    let guest = directory.path().join("g.cfg");
    std::fs::write(&guest, "name='g'\nvif=['bridge=nobr']").unwrap();
    let cases = [
        ("brigdes = []", "host.toml:1: unknown field `brigdes`"),
        (
            "[[bridges]]\nname='b'\nports=['eth0']",
            "host.toml:3: found \"eth0\", expected tap:NAME or packet:NAME",
        ),
        ("[[bridges]]\nname='b'\nports=['packet:nosuch0']", "there is no network interface \"nosuch0\""),
        ("[[guests]]\ncfg='no.cfg'", "no.cfg: reading the guest's cfg: No such file"),
        ("[[guests]]\ncfg='g.cfg'", "vif: bridge: found \"nobr\", expected a bridge of the host's"),
    ];
    for (host, expected) in cases {
        let file = directory.path().join("host.toml");
        std::fs::write(&file, host).unwrap();
        let run = directory.path().join("run");
        let output = command(&run).arg("up").arg(&file).output().unwrap();
        let said = texts(&output).1;
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{host}: {said}");
        assert!(!run.join("broker.sock").exists());
    }
}
