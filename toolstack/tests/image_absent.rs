//! dom0 starts again while an image is absent: the guest's disk waits for it, rather than being closed.

mod common;

use std::path::PathBuf;

use common::{Machine, eventually};
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;

/// A machine with a guest whose disk's image can be taken away.
struct Setup {
    machine: Machine,
    image: PathBuf,
    away: PathBuf,
    socket: PathBuf,
}

fn setup() -> Setup {
    let machine = Machine::new();
    let image = machine.image("a.img", 8 * MIB);
    machine.create("web", &format!("disk=['vdev=xvda,target={}']", image.display()));
    Setup { away: machine.path("away.img"), socket: machine.dir().join("web/xvda.nbd"), image, machine }
}

impl Setup {
    /// Kills dom0, and waits until the next one has reported that the image is absent.
    fn restart_without_image(&self) {
        self.machine.await_dom0_after(self.machine.kill_dom0());
        let file = self.image.to_str().unwrap();
        eventually("dom0 says which image it waits for", || {
            let list = self.machine.ok(["block-list", "--json", "web"]);
            let list: serde_json::Value = serde_json::from_str(&list).unwrap();
            list[0]["error"]
                .as_str()
                .is_some_and(|error| error.contains(file) && error.contains("No such file"))
        });
        let errors = self.errors();
        assert!(errors.iter().any(|(_, text)| text.contains(file)), "{errors:?}");
        assert!(self.machine.log().contains(&format!("params: {file}: No such file")));
    }

    /// The nodes that report errors.
    fn errors(&self) -> Vec<(String, String)> {
        let is_error = |(path, _): &(String, String)| path.contains("/error/");
        self.machine.nodes().into_iter().filter(is_error).collect()
    }
}

#[test]
fn disk_whose_image_is_absent_when_dom0_starts_resumes_once_it_is_back() {
    let setup = setup();
    let mut client = Nbd::connect(&setup.socket).unwrap();
    // The second time dom0 starts twice without the image.
    for restarts in 1..=2_u8 {
        std::fs::rename(&setup.image, &setup.away).unwrap();
        (0..restarts).for_each(|_| setup.restart_without_image());
        client.send_write(7, &[restarts; BLOCK]).unwrap();
        std::fs::rename(&setup.away, &setup.image).unwrap();
        assert_eq!(client.written().unwrap(), 7);
        assert_eq!(client.read(7).unwrap(), [restarts; BLOCK]);
        assert_eq!(setup.errors(), []);
    }
}

#[test]
fn disk_whose_image_was_replaced_by_a_smaller_one_waits_until_it_is_as_large() {
    let setup = setup();
    let mut client = Nbd::connect(&setup.socket).unwrap();
    std::fs::rename(&setup.image, &setup.away).unwrap();
    setup.restart_without_image();
    setup.machine.image("a.img", 4 * MIB);
    let what = format!("{}: found 8192 sectors of 512 bytes, expected at least 16384", setup.image.display());
    eventually("dom0 says that the image is smaller", || {
        setup.machine.ok(["block-list", "--json", "web"]).contains(&what)
    });
    assert!(setup.machine.log().contains(&what));
    client.send_write(6 * MIB / BLOCK as u64, &[1; BLOCK]).unwrap();
    setup.machine.image("a.img", 8 * MIB);
    client.written().unwrap();
    assert_eq!(setup.errors(), []);
}

#[test]
fn disk_that_waits_for_its_image_can_be_detached() {
    let setup = setup();
    let machine = &setup.machine;
    std::fs::rename(&setup.image, &setup.away).unwrap();
    setup.restart_without_image();
    let mut client = Nbd::connect(&setup.socket).unwrap();
    client.send_write(7, &[1; BLOCK]).unwrap();
    // No backend serves it: that a client has it open would keep it for ever.
    machine.ok(["block-detach", "web", "xvda"]);
    eventually("its export is closed", || !setup.socket.exists());
    drop(client);
    assert_eq!(setup.errors(), []);
    std::fs::rename(&setup.away, &setup.image).unwrap();
    machine.ok(["block-attach", "web", &format!("{},raw,xvda,rw", setup.image.display())]);
    Nbd::connect(&setup.socket).unwrap().read(7).unwrap();
}
