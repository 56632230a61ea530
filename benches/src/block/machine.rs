//! A machine of threads with one disk: broker, store, a backend in dom0, and a guest's open disk.

use std::time::Duration;

use blkback::engine::{BaseCache, Spec, open_with};
use blkback::{Tuning, VbdDriver};
use blkfront::{Disk, Options};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use ring_abi::DomId;
use testkit::block::{Backend, GUEST, XVDA};
use xenbus::Keys;
use xenbus::driver::Failure;

/// How both ends of the disk are to behave.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    /// The ring's pages as a power of two.
    pub(super) ring_page_order: u32,
    /// How long each side polls before it sleeps.
    pub(super) busy_poll: Duration,
}

/// Everything that keeps the disk alive; dropped in this order.
pub(super) struct Machine {
    /// The guest's disk.
    pub(super) disk: Disk,
    _backend: Backend,
    _machine: testkit::Machine,
}

impl Machine {
    /// A machine whose disk is what `params` says.
    ///
    /// # Errors
    /// Whatever went wrong, in words.
    pub(super) fn new(params: &str, setup: Setup) -> Result<Machine, String> {
        Machine::with_cache(params, setup, BaseCache::default())
    }

    /// The same, with a cache of what is below the guest's own image.
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub(super) fn with_cache(params: &str, setup: Setup, cache: BaseCache) -> Result<Machine, String> {
        // A core for each side: threads inherit where they may run.
        run_on(1);
        let machine = Machine::start(params, setup, cache);
        run_on(0);
        machine
    }

    fn start(params: &str, setup: Setup, cache: BaseCache) -> Result<Machine, String> {
        let machine = testkit::Machine::without_log();
        machine.attach_disk(GUEST, XVDA, params);
        let dom0 = machine.domain(DomId::DOM0);
        let open = move |keys: &Keys| {
            let spec = Spec::from_keys(keys).map_err(|error| Failure::new(Errno::EINVAL as i32, error))?;
            Ok(open_with(&spec, &cache)?)
        };
        let mut driver =
            VbdDriver::with_opener(dom0.clone(), dom0.clone(), Box::new(move |_, keys| open(keys)));
        driver.set_tuning(Tuning { busy_poll: setup.busy_poll, ..Tuning::default() });
        let backend = Backend::start_with(driver, &dom0);
        let guest = machine.domain(GUEST);
        let options = Options {
            ring_page_order: setup.ring_page_order,
            busy_poll: setup.busy_poll,
            ..Options::default()
        };
        let disk =
            Disk::open_with(guest.clone(), guest.clone(), guest, XVDA, options).map_err(|e| e.to_string())?;
        Ok(Machine { disk, _backend: backend, _machine: machine })
    }
}

/// Puts this thread on a core, where there is one of that number.
pub(super) fn run_on(core: usize) {
    let mut set = CpuSet::new();
    // A machine with one core shares it.
    if set.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
