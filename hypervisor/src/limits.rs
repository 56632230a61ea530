//! Limits of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one: a broker, a backend and a store hold several descriptors a device, and the
/// usual soft limit of 1,024 is enough for some 150.
pub fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "failed to raise the limit of open files");
    }
}

/// The most mappings that a process may have (`vm.max_map_count`): on Xen each page that a backend keeps mapped is one.
pub fn max_mappings() -> usize {
    /// `DEFAULT_MAX_MAP_COUNT` of linux/mm.h.
    const DEFAULT: usize = 65_530;
    let set = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    set.ok().and_then(|set| set.trim().parse().ok()).unwrap_or(DEFAULT)
}
