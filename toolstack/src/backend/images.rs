//! Opens disk images, and shares one between the two domains of a virtual machine that migrates within this host.
//!
//! An image is locked against other users. Two domains of one virtual machine are recognised by their key `vm`, which
//! holds its UUID, as in Xen's `block` script.

use std::sync::{Arc, Weak};

use blkback::{Disk, open_keys};
use ring_abi::blkif::key::{DIRECT_IO_SAFE, MODE, PARAMS};
use ring_abi::xenbus::key::TYPE;
use xenbus::driver::Failure;
use xenbus::{Device, Keys};
use xenstore::{Client, Nodes};

/// The open disks.
pub struct Images {
    store: Client,
    open: Vec<Image>,
}

struct Image {
    vm: String,
    /// The keys that identify the disk.
    identity: Keys,
    device: Device,
    disk: Weak<dyn Disk>,
}

impl Images {
    /// Creates an empty set. `store` is used to read domains' keys.
    pub fn new(store: Client) -> Images {
        Images { store, open: Vec::new() }
    }

    /// Opens the disk that a device's keys configure. If it is open for another domain of the same virtual machine,
    /// returns that one.
    ///
    /// # Errors
    /// Those of [`open_keys`].
    pub fn open(&mut self, device: &Device, keys: &Keys) -> Result<Arc<dyn Disk>, Failure> {
        self.open.retain(|image| image.disk.strong_count() > 0);
        let vm = self.vm(device);
        let identity = identity(keys);
        let same = |image: &&Image| {
            image.vm == vm
                && image.device.id == device.id
                && image.device.front != device.front
                && image.identity == identity
        };
        let shared =
            self.open.iter().find(same).filter(|_| !vm.is_empty()).and_then(|image| image.disk.upgrade());
        let disk = shared.map_or_else(|| open_keys(keys), Ok)?;
        self.open.push(Image { vm, identity, device: device.clone(), disk: Arc::downgrade(&disk) });
        Ok(disk)
    }

    /// Reads the virtual machine of a device's domain; empty if the store does not have it.
    fn vm(&mut self, device: &Device) -> String {
        let path = format!("/local/domain/{}/vm", device.front);
        self.store.read_opt_as(&path).ok().flatten().unwrap_or_default()
    }
}

fn identity(keys: &Keys) -> Keys {
    let chosen = keys.iter().filter(|(key, _)| matches!(*key, PARAMS | MODE | TYPE | DIRECT_IO_SAFE));
    chosen.fold(Keys::default(), |chosen, (key, value)| chosen.with(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::DomId;
    use xenstore::server::{Config, Store};

    #[test]
    fn open_disk_is_shared_by_two_domains_of_one_virtual_machine_only() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        for (domid, vm) in [(1, "/vm/a"), (2, "/vm/a"), (3, "/vm/b")] {
            client.write(&format!("/local/domain/{domid}/vm"), vm).unwrap();
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let keys = |mode| Keys::new("/b").with(PARAMS, image.path().display()).with(MODE, mode);
        let mut images = Images::new(client);
        let mut open = |domid, id, mode| images.open(&Device::new("vbd", DomId(domid), id), &keys(mode));
        let first = open(1, 51712, "w").unwrap();
        assert!(Arc::ptr_eq(&first, &open(2, 51712, "w").unwrap()), "the virtual machine migrates");
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
