// Not a core: does I/O or calls a hypervisor.

//! Configuration of vifs.

use inflight::InflightDir;

/// How a backend accesses the payloads of packets from guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DataPath {
    /// Payloads are mapped while frames refer to them. For hypervisors on which mapping costs no system call.
    #[default]
    Map,
    /// Payloads are copied by the call that copies the headers: two calls a batch of frames, where mapping takes four for
    /// each, as on Xen.
    Copy,
}

/// Configuration of all vifs of a driver.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most packets taken from a guest in one round; the bridge may take fewer.
    pub burst: usize,
    /// How payloads are accessed.
    pub data_path: DataPath,
    /// Whether TCP segmentation offload is advertised.
    pub gso: bool,
    /// Whether an event channel for each ring is offered (`feature-split-event-channels`) instead of one for both. One costs
    /// fewer system calls, as one thread serves both rings. A frontend that has two is served either way.
    pub split_event_channels: bool,
    /// Where the rings' response logs are kept, so that another process can resume the connections of one that was
    /// killed and frontends do not notice. Costs a few stores for each packet, and payloads are copied even where they
    /// could be mapped.
    pub inflight_dir: Option<InflightDir>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            burst: 256,
            data_path: DataPath::default(),
            gso: true,
            split_event_channels: false,
            inflight_dir: None,
        }
    }
}
