//! What tests and benchmarks of several crates need: a machine in threads, peers that are scripted or hostile, and
//! bytes by a seed. A dev-dependency of the drivers, and a dependency of `benches`; nothing that is shipped names it.
//!
//! [`Machine`] is a broker, a store and their domains in one process. Backends are started on it one by one:
//! [`block::Backend`] serves disks, [`net::Network`] is a bridge and the backend of its ports. Devices are attached as
//! `xl` does it, with the nodes that the toolstack itself writes. [`block::RawFrontend`], [`net::RawFrontend`] and
//! [`net::RawBackend`] are ends of a device whose rings and keys a test writes by hand.
//!
//! Everything here panics where it fails, and no wait is longer than [`BOUND`].
//!
//! ```
//! use testkit::block::{self, Backend, GUEST};
//! use testkit::{Machine, random};
//!
//! let machine = Machine::new();
//! let _backend = Backend::start(&machine);
//! machine.attach_disk(GUEST, block::XVDA, "ram:1048576");
//! let mut disk = block::open(&machine.domain(GUEST), block::options());
//! let written = random::bytes(1, 4096);
//! disk.write_at(8192, &written).unwrap();
//! let mut read = vec![0; 4096];
//! disk.read_at(8192, &mut read).unwrap();
//! assert!(read == written);
//! ```

pub mod block;
mod driver;
mod frontend;
mod machine;
pub mod net;
pub mod random;

pub use driver::DriverThread;
pub use frontend::FrontendDevice;
pub use machine::Machine;

use std::time::Duration;

/// Longest that anything here may take.
pub const BOUND: Duration = Duration::from_secs(20);
