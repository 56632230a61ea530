//! Commands that run at the same time, or lag behind: each acts on the guest and the device that it was given, and on none that
//! has its name or number later.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use common::{Machine, eventually, texts};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::nbd::Nbd;
use xenstore::Nodes;

const MIB: u64 = 1 << 20;

/// The node of the disk xvdb of the first guest's backend.
const XVDB: &str = "/local/domain/0/backend/vbd/1/51728";

/// A machine with a guest `web`, and two images.
struct Scene {
    machine: Machine,
    guest: Pid,
    /// An image of 8 MiB.
    small: PathBuf,
    /// An image of 16 MiB.
    large: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let machine = Machine::new();
        machine.create("web", "");
        let (small, large) = (machine.image("small.img", 8 * MIB), machine.image("large.img", 16 * MIB));
        let guest = Pid::from_raw(machine.pid("web").unwrap());
        Scene { machine, guest, small, large }
    }

    fn signal_guest(&self, signal: Signal) {
        kill(self.guest, signal).unwrap();
    }

    /// Waits until a node has a value.
    fn await_node(&self, path: &str, value: &str) {
        let mut store = self.machine.store();
        eventually(path, || store.read_text(path).is_ok_and(|text| text == value));
    }

    /// Waits until the image is the disk xvdb.
    fn await_xvdb(&self, image: &Path) {
        self.await_node(&format!("{XVDB}/params"), image.to_str().unwrap());
    }

    /// Whether the guest's disk xvdb is the large image.
    fn xvdb_is_large(&self) -> bool {
        Nbd::connect(&self.machine.dir().join("web/xvdb.nbd")).unwrap().size() == 16 * MIB
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A stopped guest would not notice that its machine is gone.
        let _ = kill(self.guest, Signal::SIGCONT);
    }
}

/// The argument that attaches an image as xvdb.
fn xvdb(image: &Path) -> String {
    format!("{},raw,xvdb,rw", image.display())
}

/// A command in the background.
struct Command(Child);

impl Command {
    fn start(machine: &Machine, args: &[&str]) -> Command {
        let mut command = common::command(&machine.dir());
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        Command(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    fn finish(self) -> Output {
        self.0.wait_with_output().unwrap()
    }

    /// Waits until it has failed, with one line.
    fn fails(self) -> String {
        let output = self.finish();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        common::one_line(&texts(&output).1)
    }

    fn succeeds(self) {
        let output = self.finish();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn of_two_guests_of_one_name_created_at_once_one_is_refused_and_the_other_one_runs() {
    let machine = Machine::new();
    let image = machine.image("a.img", 8 * MIB);
    let cfg = format!("name = 'web'\ndisk=['vdev=xvda,target={}']\n", image.display());
    let cfg = machine.file("web.cfg", &cfg);
    let create = ["create", cfg.to_str().unwrap()];
    for _ in 0..8 {
        let both = [(); 2].map(|()| Command::start(&machine, &create)).map(Command::finish);
        let refused: Vec<_> = both.iter().filter(|output| !output.status.success()).collect();
        assert_eq!(refused.len(), 1, "{both:?}");
        let error = common::one_line(&texts(refused[0]).1);
        assert!(error.contains("the name \"web\" is taken"), "{error}");
        drop(Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap());
        machine.ok(["destroy", "web"]);
    }
}

#[test]
fn guest_without_devices_runs_when_its_create_has_returned() {
    let machine = Machine::new();
    for name in ["a", "b", "c", "d"] {
        machine.create(name, "");
        assert!(machine.pid(name).is_some(), "another create of its name would take it for dead");
    }
}

#[test]
fn detach_that_lags_leaves_the_next_disk_of_its_number() {
    let scene = Scene::new();
    let machine = &scene.machine;
    machine.ok(["block-attach", "web", &xvdb(&scene.small)]);
    scene.signal_guest(Signal::SIGSTOP);
    let lagging = Command::start(machine, &["block-detach", "--force", "--timeout", "3", "web", "xvdb"]);
    scene.await_node(&format!("{XVDB}/online"), "0");
    lagging.signal(Signal::SIGSTOP);
    machine.ok(["block-detach", "--force", "--timeout", "0", "web", "xvdb"]);
    scene.signal_guest(Signal::SIGCONT);
    machine.ok(["block-attach", "web", &xvdb(&scene.large)]);
    lagging.signal(Signal::SIGCONT);
    lagging.succeeds();
    assert!(scene.xvdb_is_large());
}

#[test]
fn attach_that_was_beaten_by_another_one_fails_and_leaves_that_one() {
    let scene = Scene::new();
    let machine = &scene.machine;
    for timeout in ["1", "20"] {
        scene.signal_guest(Signal::SIGSTOP);
        let args = ["block-attach", "--timeout", timeout, "web", &xvdb(&scene.small)];
        let lagging = Command::start(machine, &args);
        scene.await_xvdb(&scene.small);
        lagging.signal(Signal::SIGSTOP);
        machine.ok(["block-detach", "--force", "--timeout", "0", "web", "xvdb"]);
        let next = Command::start(machine, &["block-attach", "web", &xvdb(&scene.large)]);
        scene.await_xvdb(&scene.large);
        let failed = if timeout == "1" {
            // It times out while the next one waits.
            lagging.signal(Signal::SIGCONT);
            let failed = lagging.fails();
            scene.signal_guest(Signal::SIGCONT);
            next.succeeds();
            failed
        } else {
            // The next one is connected by then.
            scene.signal_guest(Signal::SIGCONT);
            next.succeeds();
            lagging.signal(Signal::SIGCONT);
            lagging.fails()
        };
        assert!(failed.contains("disk xvdb: another command has detached it"), "{failed}");
        assert!(scene.xvdb_is_large());
        machine.ok(["block-detach", "--force", "web", "xvdb"]);
    }
}

#[test]
fn vif_attach_and_detach_that_lag_leave_the_next_vif_of_their_number() {
    let scene = Scene::new();
    let machine = &scene.machine;
    let mac = |last: u8| format!("mac=00:16:3e:00:00:0{last},devid=3");
    let node = "/local/domain/0/backend/vif/1/3";
    scene.signal_guest(Signal::SIGSTOP);
    let attach = Command::start(machine, &["network-attach", "web", &mac(1)]);
    scene.await_node(&format!("{node}/online"), "1");
    attach.signal(Signal::SIGSTOP);
    machine.ok(["network-detach", "--force", "--timeout", "0", "web", "3"]);
    scene.signal_guest(Signal::SIGCONT);
    machine.ok(["network-attach", "web", &mac(2)]);
    attach.signal(Signal::SIGCONT);
    let failed = attach.fails();
    assert!(failed.contains("vif 3: another command has detached it"), "{failed}");
    // Its frontend is connected now, and does not close.
    scene.signal_guest(Signal::SIGSTOP);
    let detach = Command::start(machine, &["network-detach", "--force", "--timeout", "3", "web", "3"]);
    scene.await_node(&format!("{node}/online"), "0");
    detach.signal(Signal::SIGSTOP);
    machine.ok(["network-detach", "--force", "--timeout", "0", "web", "3"]);
    scene.signal_guest(Signal::SIGCONT);
    machine.ok(["network-attach", "web", &mac(3)]);
    detach.signal(Signal::SIGCONT);
    detach.succeeds();
    let list = machine.ok(["network-list", "web"]);
    assert!(list.contains("00:16:3e:00:00:03"), "{list}");
}

#[test]
fn attach_that_a_detach_beats_says_so() {
    let scene = Scene::new();
    let machine = &scene.machine;
    scene.signal_guest(Signal::SIGSTOP);
    let attach = Command::start(machine, &["block-attach", "web", &xvdb(&scene.small)]);
    scene.await_xvdb(&scene.small);
    let taken = machine.fails(["block-attach", "web", &xvdb(&scene.large)]);
    assert!(taken.contains("has a disk xvdb already"), "{taken}");
    machine.ok(["block-detach", "web", "xvdb"]);
    let failed = attach.fails();
    assert!(failed.contains("disk xvdb: another command has detached it"), "{failed}");
    scene.signal_guest(Signal::SIGCONT);
}

/// Whether no disk has an image.
fn is_free(image: &Path) -> bool {
    Flock::lock(std::fs::File::open(image).unwrap(), FlockArg::LockExclusiveNonblock).is_ok()
}

#[test]
fn forced_detach_and_destroy_say_that_dom0_has_not_released_the_image() {
    let scene = Scene::new();
    let machine = &scene.machine;
    let commands: [&[&str]; 2] =
        [&["block-detach", "--force", "--timeout", "0", "web", "xvdb"], &["destroy", "web"]];
    for command in commands {
        machine.ok(["block-attach", "web", &xvdb(&scene.small)]);
        let dom0 = Pid::from_raw(machine.pid("Domain-0").unwrap());
        kill(dom0, Signal::SIGSTOP).unwrap();
        let failed = machine.fails(command);
        let expected = format!("dom0 has not released {} yet", scene.small.display());
        assert!(failed.contains(&expected), "{failed}");
        assert!(!is_free(&scene.small));
        assert_eq!(machine.store().read_opt(&format!("{XVDB}/params")).unwrap(), None, "it is removed");
        kill(dom0, Signal::SIGCONT).unwrap();
        eventually("the image is free", || is_free(&scene.small));
    }
    assert!(machine.fails(["block-list", "web"]).contains("there is no domain"));
}

#[test]
fn vifs_attached_at_once_without_a_number_get_numbers_of_their_own() {
    let scene = Scene::new();
    let machine = &scene.machine;
    let attaches: Vec<_> = (0..6).map(|_| Command::start(machine, &["network-attach", "web"])).collect();
    attaches.into_iter().for_each(Command::succeeds);
    let mut ids = machine.store().directory("/libxl/1/device/vif").unwrap();
    ids.sort();
    assert_eq!(ids, ["0", "1", "2", "3", "4", "5"]);
}
