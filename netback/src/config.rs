// Not a core: does I/O or calls a hypervisor.

//! Configuration of vifs.

use crate::backlog::Limits;
use inflight::InflightDir;

/// Configuration of all vifs of a driver.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most packets taken from a guest in one round; the bridge may take fewer.
    pub burst: usize,
    /// Bounds of the frames that wait for a guest without buffers.
    pub backlog: Limits,
    /// Whether TCP segmentation offload is advertised.
    pub gso: bool,
    /// Where the rings' response logs are kept, so that another process can resume the connections of one that was
    /// killed and frontends do not notice. Costs a few stores for each packet, and payloads are copied even where they
    /// could be mapped.
    pub inflight_dir: Option<InflightDir>,
}

impl Default for Config {
    fn default() -> Self {
        Self { burst: 256, backlog: Limits::default(), gso: true, inflight_dir: None }
    }
}
