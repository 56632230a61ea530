//! A policy that is read again on SIGHUP, on a machine of processes: all of it or nothing, for devices that are connected and used.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use common::{Machine, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;

struct Governed {
    machine: Machine,
    policy: PathBuf,
    _directory: tempfile::TempDir,
}

impl Governed {
    fn new(policy: &str) -> Governed {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        fs::write(&path, policy).unwrap();
        let machine = Machine::with(&format!("policy = '{}'", path.display()));
        Governed { machine, policy: path, _directory: directory }
    }

    /// Puts another file in the place of the policy's, as editors and configuration management do.
    fn replace(&self, policy: &str) {
        let new = self.policy.with_extension("new");
        fs::write(&new, policy).unwrap();
        fs::rename(new, &self.policy).unwrap();
    }

    fn hang_up(&self) {
        kill(Pid::from_raw(self.machine.supervisor()), Signal::SIGHUP).unwrap();
    }

    /// Has a bad file read; returns what is logged.
    fn refused(&self, times: usize) -> String {
        const REFUSED: &str = "failed to read the policy again; what was in force before stays so";
        self.hang_up();
        eventually("the bad file is logged", || self.machine.log().matches(REFUSED).count() == times);
        let log = self.machine.log();
        log.lines().rfind(|line| line.contains(REFUSED)).unwrap().to_owned()
    }

    fn limits(&self) -> Value {
        let list: Value = serde_json::from_str(&self.machine.ok(["block-list", "web", "--json"])).unwrap();
        list[0]["limits"].clone()
    }

    fn path(&self) -> &Path {
        &self.policy
    }
}

/// Each start fails: no more than the intervals allow are made, the last error is named, and the guest lives until it can be served.
#[test]
fn dom0_whose_policy_is_broken_is_started_ever_more_rarely_until_it_is_mended() {
    let governed = Governed::new("");
    let machine = &governed.machine;
    machine.create("web", &format!("disk=['vdev=xvda,target={}']", machine.image("a.img", MIB).display()));
    let mut client = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    governed.replace("nonsense");
    machine.kill_dom0();
    let tries = || machine.log().matches("failed to start dom0").count();
    eventually("starts have failed", || tries() == 4);
    let log = machine.log();
    assert!(log.contains("dom0 exited before it was ready: exit status: 1"), "{log}");
    let waits: Vec<&str> = log.lines().filter_map(|line| line.split("again_after").nth(1)).collect();
    assert!(waits[3].contains("3.2s"), "{waits:?}");
    assert_eq!(log.matches("dom0 exited; restarting it").count(), 1);
    governed.replace("");
    governed.hang_up();
    client.send_write(1, &[1; BLOCK]).unwrap();
    client.written().unwrap();
}

#[test]
fn connected_devices_have_what_a_policy_says_that_is_read_again_and_a_bad_one_changes_nothing() {
    let first = "
[[disk]]
domain = 'w*'
iops-total = 5000
bps-read = '100M'

[[vif]]
rate = '80Mb/s'
lock = 'off'
";
    let governed = Governed::new(first);
    let machine = &governed.machine;
    let image = machine.image("a.img", MIB);
    let rest = format!("disk=['vdev=xvda,iops-write=4000,target={}']\nvif=['vlan=10']", image.display());
    machine.create("web", &rest);
    let dom0 = machine.pid("Domain-0");
    assert_eq!(governed.limits(), json!({"iops-total": 5000, "bps-read": 100 * MIB, "iops-write": 4000}));

    // While a guest writes.
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let mut client = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                client.send_write(written.load(SeqCst) % 8, &[7; BLOCK]).unwrap();
                client.written().unwrap();
                written.fetch_add(1, SeqCst);
            }
        });
        let check = || {
            // The line's key counts instead of the policy's; `bps-read` is no longer given, and `iops-read` is.
            governed.replace(
                "[[disk]]\niops-total = 3000\niops-write = 10\niops-read = 70\n\n[[vif]]\nrate = '8Mb/s'\nrate-in = '8Mb/s'\nisolated = 'on'\n",
            );
            governed.hang_up();
            let other = json!({"iops-total": 3000, "iops-read": 70, "iops-write": 4000});
            eventually("the disk has the other limits", || governed.limits() == other);
            for said in [
                "rate limit changed rate=50000 bytes in 50ms",
                "receiving rate limit changed rate_in=50000 bytes in 50ms",
                "lock changed lock=mac",
                "flags changed flags=isolated",
            ] {
                eventually(said, || machine.log().contains(said));
            }
            // Set by a command, which counts until the disk is detached.
            machine.ok(["block-set", "web", "xvda", "iops-total=2500"]);
            let set = json!({"iops-total": 2500, "iops-read": 70, "iops-write": 4000});
            eventually("the command's limit", || governed.limits() == set);
            bad_files_change_nothing(&governed, &set);

            governed.replace("[[disk]]\niops-total = 1000\n");
            governed.hang_up();
            let last = json!({"iops-total": 2500, "iops-write": 4000});
            eventually("the command's and the line's are left", || governed.limits() == last);
            machine.ok(["block-set", "web", "xvda", "iops-total="]);
            let policy = json!({"iops-total": 1000, "iops-write": 4000});
            eventually("the policy's is in force again", || governed.limits() == policy);
            let before = written.load(SeqCst);
            eventually("the guest writes on", || written.load(SeqCst) > before + 10);
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
        stop.store(true, SeqCst);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(machine.pid("Domain-0"), dom0, "it is the same process");
}

fn bad_files_change_nothing(governed: &Governed, in_force: &Value) {
    let path = governed.path().display();
    governed.replace("[[disk]]\niops-total = 9\n\n[[disk]]\niops-totl = 5\n");
    let line = governed.refused(1);
    let expected = format!("{path}:5: disk: found \"iops-totl\", expected domain, uuid, vdev");
    assert!(line.contains(" ERROR ") && line.contains(&expected), "{line}");
    // As one that is being written.
    fs::write(governed.path(), "[[disk]]\niops-total = 9\n\n[[vif]]\nrate = '8M").unwrap();
    let line = governed.refused(2);
    assert!(line.contains(&format!("{path}:5: ")), "{line}");
    fs::remove_file(governed.path()).unwrap();
    let line = governed.refused(3);
    assert!(line.contains(&format!("{path}: opening the policy: No such file")), "{line}");
    // A FIFO is not waited for.
    nix::unistd::mkfifo(governed.path(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let line = governed.refused(4);
    assert!(line.contains("found no regular file"), "{line}");
    assert_eq!(&governed.limits(), in_force);
    // Neither do devices that come later have anything of them.
    let image = governed.machine.image("b.img", MIB);
    governed.machine.ok(["block-attach", "web", &format!("{},raw,xvdb", image.display())]);
    let list: Value = serde_json::from_str(&governed.machine.ok(["block-list", "web", "--json"])).unwrap();
    let disks = list.as_array().unwrap();
    let limits = disks.iter().find(|disk| disk["dev"] == "xvdb").map(|disk| &disk["limits"]);
    assert_eq!(limits, Some(&json!({"iops-total": 3000, "iops-write": 10, "iops-read": 70})), "{list}");
    governed.machine.ok(["block-detach", "web", "xvdb"]);
}

#[test]
fn hangup_without_a_policy_ends_nothing() {
    let machine = Machine::new();
    let dom0 = machine.pid("Domain-0").unwrap();
    kill(Pid::from_raw(dom0), Signal::SIGHUP).unwrap();
    eventually("it is logged", || machine.log().contains("SIGHUP: there is no policy to read again"));
    assert_eq!(machine.pid("Domain-0"), Some(dom0));
}
