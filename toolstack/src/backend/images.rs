//! Disks of a real host's machines: one machine that has two domains for a while, because it migrates to the host that it
//! is on, has one disk all the time.
//!
//! An image is locked against all others. The two domains of one machine are known by their `vm`, which holds its UUID, as
//! Xen's own `block` script knows them.

use std::sync::{Arc, Weak};

use blkback::{Disk, open_keys};
use xenstore::driver::Failure;
use xenstore::xenbus::Device;
use xenstore::{Client, Keys, Nodes};

/// The disks that are open.
pub struct Images {
    store: Client,
    open: Vec<Image>,
}

struct Image {
    vm: String,
    /// Keys that say which disk it is.
    wanted: Keys,
    device: Device,
    disk: Weak<dyn Disk>,
}

impl Images {
    /// None is open yet.
    pub fn new(store: Client) -> Images {
        Images { store, open: Vec::new() }
    }

    /// The disk that the keys of a device ask for; the one that is open where the device is another domain's of the same
    /// machine.
    ///
    /// # Errors
    /// As [`open_keys`].
    pub fn open(&mut self, device: &Device, keys: &Keys) -> Result<Arc<dyn Disk>, Failure> {
        self.open.retain(|image| image.disk.strong_count() > 0);
        let (vm, wanted) = (self.vm(device), wanted(keys));
        let same = |image: &&Image| {
            image.vm == vm
                && image.device.id == device.id
                && image.device.front != device.front
                && image.wanted == wanted
        };
        let known =
            self.open.iter().find(same).filter(|_| !vm.is_empty()).and_then(|image| image.disk.upgrade());
        let disk = known.map_or_else(|| open_keys(keys), Ok)?;
        self.open.push(Image { vm, wanted, device: device.clone(), disk: Arc::downgrade(&disk) });
        Ok(disk)
    }

    /// Which machine a device's domain is; empty where nobody says.
    fn vm(&mut self, device: &Device) -> String {
        let path = format!("/local/domain/{}/vm", device.front);
        self.store.read_opt_as(&path).ok().flatten().unwrap_or_default()
    }
}

fn wanted(keys: &Keys) -> Keys {
    let chosen = keys.iter().filter(|(key, _)| matches!(*key, "params" | "mode" | "type" | "direct-io-safe"));
    chosen.fold(Keys::default(), |chosen, (key, value)| chosen.with(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::DomId;
    use xenstore::server::{Config, Store};

    #[test]
    fn one_disk_for_two_domains_of_a_machine_and_no_other() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        for (domid, vm) in [(1, "/vm/a"), (2, "/vm/a"), (3, "/vm/b")] {
            client.write(&format!("/local/domain/{domid}/vm"), vm).unwrap();
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let keys = |mode| Keys::new("/b").with("params", image.path().display()).with("mode", mode);
        let mut images = Images::new(client);
        let mut open = |domid, id, mode| images.open(&Device::new("vbd", DomId(domid), id), &keys(mode));
        let first = open(1, 51712, "w").unwrap();
        assert!(Arc::ptr_eq(&first, &open(2, 51712, "w").unwrap()), "it migrates");
        for (domid, id, mode) in [(3, 51712, "w"), (2, 51728, "w"), (2, 51712, "r"), (9, 51712, "w")] {
            assert_eq!(
                open(domid, id, mode).err().map(|e| e.errno),
                Some(nix::errno::Errno::EBUSY as i32),
                "{domid} {id} {mode}"
            );
        }
        drop(first);
        open(3, 51712, "w").unwrap();
    }
}
