//! Support for tests and benchmarks of several crates: a machine in threads, scripted and hostile peers, and random
//! bytes from a seed. A dev-dependency of the drivers and a dependency of `benches`; no shipped crate depends on it.
//!
//! [`Machine`] is a broker, a store and their domains in one process. Backends are started on it one by one:
//! [`block::Backend`] serves disks, [`net::Network`] is a bridge and the backend of its ports. Devices are attached
//! with the nodes that libxl writes, by the toolstack's own code. [`block::RawFrontend`], [`block::RawBackend`],
//! [`net::RawFrontend`] and [`net::RawBackend`] are ends of a device whose rings and keys the test writes itself.
//! [`page_ownership`] is a model of page transfer, which the local hypervisor is compared with; [`RawArena`] is memory that a
//! hostile domain writes past its own hypervisor's bookkeeping.
//!
//! [`soak`] makes random operations on a whole machine, and says what must hold after each.
//!
//! [`power_cut`] makes what a disk may hold after its power was cut, and compares it with what a frontend was told.
//!
//! [`LossyStore`] is a store whose connections the test cuts, [`HookedStream`] a connection before each of whose requests
//! the test does something. [`nbd`] is a client of a guest's exported disks. [`environment`] reads how
//! long a test is to be.
//!
//! Every function panics on failure, and no wait is longer than [`BOUND`].
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

mod attacks;
pub mod block;
mod driver;
pub mod environment;
mod frontend;
mod hooked_stream;
mod lossy_store;
mod machine;
pub mod nbd;
pub mod net;
mod no_io_uring;
pub mod page_ownership;
pub mod power_cut;
pub mod random;
mod raw_arena;
pub mod soak;

pub use driver::DriverThread;
pub use frontend::FrontendDevice;
pub use hooked_stream::HookedStream;
pub use lossy_store::LossyStore;
pub use machine::Machine;
pub use no_io_uring::refuse_io_uring;
pub use raw_arena::RawArena;
pub use ring_abi::testing::StopOnDrop;

use std::time::Duration;

/// The longest wait for any one event.
pub const BOUND: Duration = Duration::from_secs(20);
