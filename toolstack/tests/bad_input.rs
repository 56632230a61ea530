//! Invalid input from the user: one error line, exit code 1, and no changes on the machine.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Machine, command, one_line, texts};
use serde_json::Value;

/// A machine, and its state before the commands under test.
struct Before {
    machine: Machine,
    state: State,
}

/// What a failed command must not change.
#[derive(PartialEq, Debug)]
struct State {
    nodes: Vec<(String, String)>,
    domains: Value,
    directory: Vec<PathBuf>,
}

impl Before {
    fn new(machine: Machine) -> Before {
        // The file of the lock that `create` takes remains after the first creation.
        machine.file("run/create.lock", "");
        let state = State::of(&machine);
        Before { machine, state }
    }

    /// Runs a command that must fail without changing anything; returns its error line.
    fn error<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let error = self.machine.fails(args);
        self.assert_unchanged();
        error
    }

    fn assert_unchanged(&self) {
        assert_eq!(State::of(&self.machine), self.state);
    }

    /// Creates a guest from the text of a cfg, which must fail without changing anything; returns the error line.
    fn create_error(&self, cfg: &str) -> String {
        let path = self.machine.file("bad.cfg", cfg);
        let error = self.error([Path::new("create"), &path]);
        error.replace(&path.display().to_string(), "bad.cfg")
    }
}

impl State {
    fn of(machine: &Machine) -> State {
        let list: Value = serde_json::from_str(&machine.ok(["list", "--json"])).unwrap();
        let domains = list.as_array().unwrap().iter().map(|d| d["name"].clone()).collect();
        let mut directory: Vec<PathBuf> =
            std::fs::read_dir(machine.dir()).unwrap().map(|e| e.unwrap().path()).collect();
        directory.sort();
        // Empty parent directories of earlier devices remain.
        let nodes = machine.nodes().into_iter().filter(|(path, value)| !is_parent(path, value)).collect();
        State { nodes, domains, directory }
    }
}

/// Whether a node may be a parent directory of devices or of their errors.
fn is_parent(path: &str, value: &str) -> bool {
    value.is_empty()
        && ["/local/domain/0/error", "/local/domain/0/backend"].iter().any(|p| path.starts_with(p))
}

#[test]
fn create_of_an_invalid_guest_names_the_key_and_changes_nothing() {
    let before = Before::new(Machine::new());
    let image = before.machine.image("a.img", 1 << 20);
    let image = image.display();
    let missing = "name='x'\ndisk=['vdev=xvda,target=/no/such.img']";
    let error = before.create_error(missing);
    assert!(error.starts_with("xpv: bad.cfg: disk: /no/such.img: opening it"), "{error}");
    assert!(error.contains("No such file"), "{error}");
    let cases = [
        ("name='x'\ndisk=['vdev=xvda,target=/']".into(), "disk: target: found \"/\", expected an image file"),
        (
            format!("name='x'\ndisk=['{image},raw,xvda,rx']"),
            "xpv: bad.cfg:2: disk: access: found \"rx\", expected ro",
        ),
        (format!("name='x'\ndisk=['{image},qcow2,xvda']"), "a.img: found 0x00000000, expected a qcow2 image"),
        (format!("name='x'\ndisk=['{image},vhd,xvda']"), "disk: format: found \"vhd\", expected raw"),
        (
            format!("name='x'\ndisk=[\n'{image},,xvda',\n'{image},,xvda']"),
            "bad.cfg:4: disk: vdev: found \"xvda\"",
        ),
        (
            "import os\nname='x'".into(),
            "bad.cfg:1: import: found \"os\", expected = or +=; this looks like Python",
        ),
        (
            "name='x'\ndisk=['/a,,xvda,backend=storage']".into(),
            "bad.cfg:2: disk: backend: found \"storage\", expected Domain-0 (backend= names a driver domain",
        ),
        ("name='x'\nvif=['mac=zz']".into(), "bad.cfg:2: vif: mac: found \"zz\", expected an address"),
        ("disk=[]".into(), "bad.cfg: name: missing, expected the guest's name"),
        (
            "name='x'\nvif=['bridge=nobr']".into(),
            "vif: bridge: found \"nobr\", expected a bridge of dom0: xenbr0",
        ),
        ("name='Domain-0'".into(), "the name \"Domain-0\" is taken by domain 0"),
    ];
    for (cfg, expected) in cases {
        let error = before.create_error(&cfg);
        assert!(error.contains(expected), "{cfg}: {error}");
    }
    let error = before.error(["create", "/no/such.cfg"]);
    assert!(error.starts_with("xpv: /no/such.cfg: reading the guest's cfg: No such file"), "{error}");
}

#[test]
fn create_with_an_unreadable_image_is_refused() {
    let before = Before::new(Machine::new());
    let image = before.machine.image("a.img", 1 << 20);
    // Root may read it all the same; an ordinary user may not.
    std::fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let cfg = format!("name='x'\ndisk=['vdev=xvda,target={}']", image.display());
    if nix::unistd::geteuid().is_root() {
        let cfg = before.machine.file("bad.cfg", &cfg);
        let error = create_without_capabilities(&before.machine, &cfg);
        assert!(error.contains("Permission denied"), "{error}");
    } else {
        let error = before.create_error(&cfg);
        assert!(error.contains("Permission denied"), "{error}");
    }
    before.assert_unchanged();
}

/// Runs `create` without root's privileges over files; returns the error line.
fn create_without_capabilities(machine: &Machine, cfg: &Path) -> String {
    let mut setpriv = common::program::program("setpriv", "util-linux");
    setpriv.args(["--bounding-set", "-all", "--inh-caps", "-all"]).arg(env!("CARGO_BIN_EXE_xpv"));
    let output = setpriv.arg("--dir").arg(machine.dir()).arg("create").arg(cfg).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    one_line(&texts(&output).1)
}

#[test]
fn create_without_permission_for_taps_is_refused() {
    let before = Before::new(Machine::new());
    let cfg = before.machine.file("tap.cfg", "name='x'\nvif=['']");
    // A process in a new user namespace has no rights over the network namespace outside.
    let mut unshare: Command = common::program::program("unshare", "util-linux");
    unshare.arg("-r").arg(env!("CARGO_BIN_EXE_xpv")).arg("--dir").arg(before.machine.dir());
    let output = unshare.arg("create").arg(&cfg).output().unwrap();
    let error = one_line(&texts(&output).1);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("xpv: vif 0: no permission to make tap \"vif"), "{error}");
    before.assert_unchanged();
}

#[test]
fn commands_with_names_or_devices_in_use_or_missing_are_refused() {
    let machine = Machine::new();
    let a = machine.image("a.img", 1 << 20);
    let b = machine.image("b.img", 1 << 20);
    machine.create("web", &format!("disk=['{},,xvda']", a.display()));
    let before = Before::new(machine);
    let error = before.create_error(&format!("name='web'\ndisk=['{},,xvda']", b.display()));
    assert!(error.contains("the name \"web\" is taken by domain 1"), "{error}");
    let error = before.error(["block-attach", "web", &format!("vdev=xvda,target={}", b.display())]);
    assert!(error.contains("domain 1 has a disk xvda already"), "{error}");
    let error = before.error(["block-attach", "web", &format!("vdev=xvdb,target={}", a.display())]);
    assert!(error.starts_with("xpv: disk xvdb: ") && error.contains("a.img"), "{error}");
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
        let error = before.error(args);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
}

#[test]
fn machine_that_is_missing_or_running_is_reported() {
    let machine = Machine::new();
    let output = command(&machine.dir()).arg("hypervisor").output().unwrap();
    let error = one_line(&texts(&output).1);
    assert!(error.contains("another broker runs in"), "{error}");
    let output = command(&machine.dir()).arg("dom0").output().unwrap();
    let error = texts(&output).1;
    assert!(error.contains("is domain 0 already"), "{error}");
    machine.ok(["list"]);
    let nowhere = machine.path("nowhere");
    let output = command(&nowhere).arg("list").output().unwrap();
    let error = one_line(&texts(&output).1);
    assert!(error.starts_with("xpv: no machine runs in ") && error.contains("xpv up"), "{error}");
    assert!(!nowhere.exists());
}

#[test]
fn up_with_an_invalid_host_file_names_the_key() {
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
        let error = texts(&output).1;
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{host}: {error}");
        assert!(!run.join("broker.sock").exists());
    }
}
