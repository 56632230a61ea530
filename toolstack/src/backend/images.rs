//! Opens disk images, shares one between the two domains of a virtual machine that migrates within this host, and says who
//! has an image that is in use.
//!
//! An image is locked against other users. Two domains of one virtual machine are recognised by their key `vm`, which
//! holds its UUID, as in Xen's `block` script.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use blkback::Disk;
use blkback::engine::{OpenError, Spec};
use event_loop::Connector;
use nix::errno::Errno;
use ring_abi::blkif::key::{DEVICE_TYPE, DIRECT_IO_SAFE, MODE, PARAMS};
use ring_abi::blkif::vdev::Vdev;
use ring_abi::xenbus::key::{ONLINE, STATE, TYPE};
use sha2::{Digest, Sha256};
use xenbus::driver::Failure;
use xenbus::{Device, Keys, XenbusState};
use xenstore::{Client, Nodes};

use super::image_controls::ImageControls;
use super::opening::Openings;
use crate::opener::{Holder, Opener, Refusal};

/// The open disks.
pub struct Images {
    connector: Arc<dyn Connector>,
    store: Client,
    /// Whether another process like this one may serve the same devices: none may on the local hypervisor.
    has_standby: bool,
    /// The machine's directory: devices of other machines may have the same numbers.
    machine: PathBuf,
    open: Vec<Image>,
    openings: Openings,
    controls: ImageControls,
}

struct Image {
    vm: String,
    /// The keys that identify the disk.
    identity: Keys,
    /// The device and inode numbers of its file, and of those below it.
    files: Vec<(u64, u64)>,
    device: Device,
    disk: Weak<dyn Disk>,
}

impl Images {
    /// Creates an empty set. `connector` leads to the store, where domains' and devices' keys are read. `has_standby`: another process like this
    /// one may serve the same devices, before or after this one. `machine` is the machine's directory; `opener` opens the images.
    ///
    /// # Errors
    /// The store cannot be connected.
    pub fn new(
        connector: Arc<dyn Connector>,
        has_standby: bool,
        machine: &Path,
        opener: Opener,
    ) -> xenstore::client::Result<Images> {
        let store = Client::connect(&connector)?;
        Ok(Images {
            connector,
            store,
            has_standby,
            machine: machine.to_owned(),
            open: Vec::new(),
            controls: ImageControls::new(opener.clone()),
            openings: Openings::new(opener),
        })
    }

    /// The images of the disks that are open, for who changes them.
    pub fn controls(&self) -> ImageControls {
        self.controls.clone()
    }

    /// Connects to the store again if the connection was lost.
    fn reconnect(&mut self) {
        // Nothing is watched: there is an event only of a connection that is closed.
        if self.store.poll_event().is_err_and(|error| error.is_disconnected())
            && let Ok(store) = Client::connect(&self.connector)
        {
            self.store = store;
        }
    }

    /// Opens the disk that a device's keys configure. If it is open for another domain of the same virtual machine,
    /// returns that one.
    ///
    /// # Errors
    /// EINVAL if a key is invalid; that of a [`Refusal`] if the disk cannot be opened; EBUSY, which may pass, while it is being
    /// opened. If it is in use, the failure says by whom, and may pass only if that device or process is on the way out.
    pub fn open(&mut self, device: &Device, keys: &Keys) -> Result<Arc<dyn Disk>, Failure> {
        self.open.retain(|image| image.disk.strong_count() > 0);
        self.reconnect();
        let mut spec = Spec::from_keys(keys).map_err(|e| Failure::new(Errno::EINVAL as i32, e))?;
        spec.user = Some(self.user(device));
        let vm = self.vm(device);
        let identity = identity(keys);
        let same = |image: &&Image| {
            image.vm == vm
                && image.device.id == device.id
                && image.device.front != device.front
                && image.identity == identity
        };
        let shared = self.open.iter().find(same).filter(|_| !vm.is_empty());
        let shared = shared.and_then(|image| Some((image.disk.upgrade()?, image.files.clone())));
        let opened = match shared {
            Some(shared) => Ok(shared),
            None => self.openings.open(device, &spec).ok_or_else(|| {
                Failure::in_use_for_now(format!(
                    "{}: {} is being opened",
                    PARAMS,
                    keys.get(PARAMS).unwrap_or_default()
                ))
            })?,
        };
        let (disk, files) = match opened {
            Err(refusal) => return Err(self.failure(device, refusal)),
            Ok(opened) => opened,
        };
        self.controls.insert(device, self.user(device), files.clone(), &disk);
        let device = device.clone();
        self.open.push(Image { vm, identity, files, device, disk: Arc::downgrade(&disk) });
        Ok(disk)
    }

    /// The failure of a device whose image was not opened.
    fn failure(&mut self, device: &Device, refusal: Refusal) -> Failure {
        match refusal {
            Refusal::InUse { path, holder, file, holders } => {
                self.in_use(device, path, holder, file, &holders)
            }
            Refusal::Claimed { what, errno } => {
                // A guest that has been served waits until its image is free again, rather than lose its disk.
                Failure { may_pass: self.is_connected(device), ..Failure::new(errno, what) }
            }
            Refusal::Failed { what, errno, may_pass } => Failure { may_pass, ..Failure::new(errno, what) },
        }
    }

    /// Says who has an image that `device` is to use; `holder` if that is not known, which may pass, as the kernel does not
    /// tell of a process that has exited.
    fn in_use(
        &mut self,
        device: &Device,
        path: PathBuf,
        holder: String,
        file: Option<(u64, u64)>,
        holders: &[Holder],
    ) -> Failure {
        // One that stays is the reason, rather than one that leaves.
        let staying = holders.iter().find_map(|holder| self.staying(device, file, holder));
        let may_pass = staying.is_none();
        let holder = staying.or_else(|| holders.iter().find_map(Holder::describe)).unwrap_or(holder);
        Failure { may_pass, ..OpenError::InUse { path, holder }.into() }
    }

    /// Names the user of an image that a process has locked, unless it is on the way out.
    fn staying(&mut self, device: &Device, file: Option<(u64, u64)>, holder: &Holder) -> Option<String> {
        if !holder.is_ours {
            let is_standby = self.has_standby && holder.is_of_our_kind;
            return holder.describe().filter(|_| !is_standby && !holder.is_leaving);
        }
        let is_open = |image: &&Image| {
            file.is_some_and(|file| image.files.contains(&file)) && image.disk.strong_count() > 0
        };
        let users: Vec<_> =
            self.open.iter().filter(is_open).map(|i| (i.device.clone(), i.identity.clone())).collect();
        let (user, _) = users.into_iter().find(|(user, identity)| {
            // A thread of an earlier device of this number may still have it.
            user != device && is_wanted(&mut self.store, user, identity)
        })?;
        Some(format!("disk {} of domain {}", Vdev::from_number(user.id), user.front))
    }

    /// Whether an earlier process has served the device.
    fn is_connected(&mut self, device: &Device) -> bool {
        let state = self.store.read_opt(&format!("{}/{STATE}", device.back_path()));
        state.ok().flatten().is_some_and(|state| state == XenbusState::Connected.as_text().as_bytes())
    }

    /// A number of a device of this machine, which an earlier process has used too.
    fn user(&self, device: &Device) -> u64 {
        let name = format!("{}\0{}", self.machine.display(), device.back_path());
        let digest = Sha256::digest(name);
        let first = digest.first_chunk::<8>().copied();
        u64::from_le_bytes(first.unwrap_or_default())
    }

    /// Reads the virtual machine of a device's domain; empty if the store does not have it.
    fn vm(&mut self, device: &Device) -> String {
        let path = format!("/local/domain/{}/vm", device.front);
        self.store.read_opt_as(&path).ok().flatten().unwrap_or_default()
    }
}

/// Whether a device that has opened an image exists with the same keys, and is not to close.
fn is_wanted(store: &mut Client, device: &Device, opened: &Keys) -> bool {
    let path = device.back_path();
    let mut keys = Keys::default();
    for key in [PARAMS, MODE, TYPE, DEVICE_TYPE, DIRECT_IO_SAFE, ONLINE, STATE] {
        if let Ok(Some(value)) = store.read_opt(&format!("{path}/{key}")) {
            keys.set(key, String::from_utf8_lossy(&value));
        }
    }
    let is_online = keys.get(ONLINE).is_some_and(|online| online.trim_ascii() != "0");
    let is_closing = keys.get(STATE) == Some(XenbusState::Closing.as_text());
    is_online && !is_closing && identity(&keys) == *opened
}

fn identity(keys: &Keys) -> Keys {
    let chosen =
        keys.iter().filter(|(key, _)| matches!(*key, PARAMS | MODE | TYPE | DEVICE_TYPE | DIRECT_IO_SAFE));
    chosen.fold(Keys::default(), |chosen, (key, value)| chosen.with(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};
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
        let mut images = images(&store, false);
        let mut open =
            |domid, id, mode| open_soon(&mut images, &Device::new("vbd", DomId(domid), id), &keys(mode));
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

    /// Images that threads of this process open.
    fn images(store: &Store, has_standby: bool) -> Images {
        let opener = Opener::in_this_process().unwrap();
        Images::new(Arc::new(store.handle()), has_standby, Path::new("/run/xpv"), opener).unwrap()
    }

    /// Opens an image that may take a moment, as it does on a loaded machine.
    fn open_soon(images: &mut Images, device: &Device, keys: &Keys) -> Result<Arc<dyn Disk>, Failure> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match images.open(device, keys) {
                Err(failure) if failure.what.contains("being opened") && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                opened => return opened,
            }
        }
    }

    /// A process with a lease on a file: others wait until it is gone before they can open it.
    fn lease(path: &Path) -> std::process::Child {
        let program = "import fcntl, signal, sys\n\
            signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
            file = open(sys.argv[1], 'r+')\n\
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
            print('leased', flush=True)\n\
            sys.stdin.read()";
        let mut command = std::process::Command::new("python3");
        let command = command.arg("-c").arg(program).arg(path);
        let mut holder =
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line)
            .unwrap();
        assert_eq!(line, "leased\n");
        holder
    }

    #[test]
    fn image_whose_opening_takes_long_is_waited_for_and_keeps_no_other_device_waiting() {
        let (image, keys, store) = image();
        let mut images = images(&store, false);
        // The open file of the fixture would be in the way of a lease.
        let slow = image.into_temp_path();
        let mut holder = lease(&slow);
        let slow_device = Device::new("vbd", DomId(1), 51712);
        for _ in 0..3 {
            let failure = images.open(&slow_device, &keys).err().unwrap();
            assert!(failure.may_pass && failure.what.contains("is being opened"), "{failure:?}");
        }
        let other = tempfile::NamedTempFile::new().unwrap();
        other.as_file().set_len(1 << 20).unwrap();
        let other = keys.clone().with(PARAMS, other.path().display());
        open_soon(&mut images, &Device::new("vbd", DomId(2), 51712), &other).unwrap();
        assert!(images.open(&slow_device, &keys).is_err(), "the lease is held");
        holder.kill().unwrap();
        holder.wait().unwrap();
        open_soon(&mut images, &slow_device, &keys).unwrap();
    }

    /// An image, its keys for a device that may write it, and a store.
    fn image() -> (tempfile::NamedTempFile, Keys, Store) {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let keys = Keys::new("/b").with(PARAMS, image.path().display()).with(MODE, "w");
        (image, keys, Store::spawn(Config::default()).unwrap())
    }

    #[test]
    fn image_of_a_device_that_stays_is_refused_by_its_name_and_one_that_leaves_is_waited_for() {
        let (image, keys, store) = image();
        let mut client = store.client().unwrap();
        let mut images = images(&store, false);
        let user = Device::new("vbd", DomId(1), 51712);
        let mut set =
            |key: &str, value: &str| client.write(&format!("{}/{key}", user.back_path()), value).unwrap();
        keys.iter().for_each(|(key, value)| set(key, value));
        set(ONLINE, "1");
        set(STATE, XenbusState::Connected.as_text());
        let _disk = open_soon(&mut images, &user, &keys).unwrap();
        let mut refusal = |device: &Device| open_soon(&mut images, device, &keys).err().unwrap();
        let other = Device::new("vbd", DomId(2), 51728);
        let failure = refusal(&other);
        let file = image.path().display().to_string();
        assert!(!failure.may_pass && failure.errno == Errno::EBUSY as i32);
        assert!(
            failure.what.contains(&file) && failure.what.contains("in use by disk xvda of domain 1"),
            "{failure:?}"
        );
        assert!(refusal(&user).may_pass, "an earlier device of the same number");
        for (key, value, before) in [(STATE, "5", "4"), (ONLINE, "0", "1"), (PARAMS, "/other.img", &file)] {
            set(key, value);
            assert!(refusal(&other).may_pass, "{key}");
            set(key, before);
        }
        assert!(!refusal(&other).may_pass);
    }

    #[test]
    fn image_that_a_process_writes_to_is_waited_for_by_a_guest_that_was_served_and_by_no_other() {
        let (image, keys, store) = image();
        let image = image.into_temp_path();
        let mut writer = std::process::Command::new("sh")
            .args(["-c", "exec 3>>\"$0\" && echo open && exec cat"])
            .arg(&image)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(writer.stdout.take().unwrap()), &mut line)
            .unwrap();
        let mut images = images(&store, false);
        let device = Device::new("vbd", DomId(1), 51712);
        for (state, waited_for) in [(XenbusState::Initialising, false), (XenbusState::Connected, true)] {
            let path = format!("{}/{STATE}", device.back_path());
            store.client().unwrap().write(&path, state.as_text()).unwrap();
            let failure = open_soon(&mut images, &device, &keys).err().unwrap();
            assert_eq!(failure.may_pass, waited_for, "{failure:?}");
            assert!(failure.what.contains("in use by this domain: process "), "{failure:?}");
        }
        drop(writer.stdin.take());
        writer.wait().unwrap();
        open_soon(&mut images, &device, &keys).unwrap();
    }

    #[test]
    fn image_of_another_process_is_refused_unless_that_may_be_a_standby() {
        let (image, keys, store) = image();
        let path = image.path().to_owned();
        // flock(1) keeps the lock while it runs cat.
        let mut command = std::process::Command::new("flock");
        let command = command.arg(&path).args(["sh", "-c", "echo locked; exec cat"]);
        let mut holder =
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line)
            .unwrap();
        let device = Device::new("vbd", DomId(1), 51712);
        let mut images = images(&store, true);
        let failure = open_soon(&mut images, &device, &keys).err().unwrap();
        assert!(
            !failure.may_pass
                && failure.what.contains("in use by process ")
                && failure.what.contains("(flock)"),
            "{failure:?}"
        );
        drop(holder.stdin.take());
        holder.wait().unwrap();
        open_soon(&mut images, &device, &keys).unwrap();
    }
}
