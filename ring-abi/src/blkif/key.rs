//! Names of a block device's nodes in the store (blkif.h:50 to 380), and who writes each.
//!
//! Numbers are decimal; flags are 0 or 1, and 0 where nothing else is said.

pub use crate::xenbus::key::{
    BACKEND, BACKEND_ID, EVENT_CHANNEL, FRONTEND, FRONTEND_ID, HANDLE, HOTPLUG_ERROR, HOTPLUG_STATUS,
    MULTI_QUEUE_MAX_QUEUES, MULTI_QUEUE_NUM_QUEUES, ONLINE, SCRIPT, STATE, TRUSTED, TYPE,
};

// What the backend can do.

/// Written by the backend: flag, [`super::OP_WRITE_BARRIER`] is understood.
pub const FEATURE_BARRIER: &str = "feature-barrier";
/// Written by the backend: flag, [`super::OP_FLUSH_DISKCACHE`] is understood.
pub const FEATURE_FLUSH_CACHE: &str = "feature-flush-cache";
/// Written by the backend: flag, [`super::OP_DISCARD`] is understood.
pub const FEATURE_DISCARD: &str = "feature-discard";
/// Written by each side: flag, grants stay mapped from request to request.
pub const FEATURE_PERSISTENT: &str = "feature-persistent";
/// Written by the backend: most segments of [`super::OP_INDIRECT`].
pub const FEATURE_MAX_INDIRECT_SEGMENTS: &str = "feature-max-indirect-segments";

// The ring.

/// Written by the backend: largest ring, binary logarithm of pages.
pub const MAX_RING_PAGE_ORDER: &str = "max-ring-page-order";
/// Written by the backend: largest ring, pages; the old name.
pub const MAX_RING_PAGES: &str = "max-ring-pages";
/// Written by the frontend: grant of a ring of one page; of more pages `ring-ref0` and so on.
pub const RING_REF: &str = "ring-ref";
/// Written by the frontend: size of the ring, binary logarithm of pages.
pub const RING_PAGE_ORDER: &str = "ring-page-order";
/// Written by the frontend: size of the ring, pages; the old name.
pub const NUM_RING_PAGES: &str = "num-ring-pages";
/// Written by the frontend: the wire layout, one of `PROTOCOL_*`.
pub const PROTOCOL: &str = "protocol";

// The disk.

/// Written by the backend: size, in units of [`SECTOR_SIZE`].
pub const SECTORS: &str = "sectors";
/// Written by the backend: bytes of a logical sector.
pub const SECTOR_SIZE: &str = "sector-size";
/// Written by the backend: bytes of a physical sector; default [`SECTOR_SIZE`].
pub const PHYSICAL_SECTOR_SIZE: &str = "physical-sector-size";
/// Written by the backend: bits of [`super::info`].
pub const INFO: &str = "info";
/// Written by the backend: bytes before the first discardable extent.
pub const DISCARD_ALIGNMENT: &str = "discard-alignment";
/// Written by the backend: bytes of a discardable extent; default [`SECTOR_SIZE`].
pub const DISCARD_GRANULARITY: &str = "discard-granularity";
/// Written by the backend: flag, [`super::DISCARD_SECURE`] is understood.
pub const DISCARD_SECURE: &str = "discard-secure";

// The frontend's own.

/// Written by the toolstack into the frontend's directory: the [`super::vdev::Vdev`] number.
pub const VIRTUAL_DEVICE: &str = "virtual-device";
/// Written by the toolstack into both directories: `disk`, `cdrom` or `floppy`.
pub const DEVICE_TYPE: &str = "device-type";

// The toolstack's.

/// Written by the toolstack into the backend's directory: `r` or `w`.
pub const MODE: &str = "mode";
/// Written by the toolstack into the backend's directory: what the disk stands on, for the script or the backend.
pub const PARAMS: &str = "params";
/// Written by the hotplug script: `MAJOR:MINOR`, hexadecimal.
pub const PHYSICAL_DEVICE: &str = "physical-device";
/// Written by the hotplug script: path of the device or file.
pub const PHYSICAL_DEVICE_PATH: &str = "physical-device-path";
/// Written by the toolstack into the backend's directory: the device's name, such as `xvda`.
pub const DEV: &str = "dev";
/// Written by the toolstack into the backend's directory: flag.
pub const REMOVABLE: &str = "removable";
/// Written by the toolstack into the backend's directory: flag.
pub const BOOTABLE: &str = "bootable";
/// Written by the toolstack into the backend's directory: flag, default 1: discard may be offered.
pub const DISCARD_ENABLE: &str = "discard-enable";
/// Written by the toolstack or the hotplug script into the backend's directory: `unmap` or `off`, the default. Ours: the header does not
/// have it; the name and the values are those of QEMU's `-drive`.
pub const DETECT_ZEROES: &str = "detect-zeroes";
/// Written by the toolstack into the backend's directory: flag: O_DIRECT is safe.
pub const DIRECT_IO_SAFE: &str = "direct-io-safe";

// Our toolstack's limits of a disk, in the words of QEMU's `-drive throttling.*` (docs/throttle.txt); 0, or no key, is no limit.

/// Written by the toolstack into the backend's directory, live too: requests, or bytes, a second at most; with `-max` what is allowed
/// for a while after less was used, and with `-max-length` for how many seconds. In the order of `blkback::throttle::LimitKind`.
pub const LIMITS: [[&str; 3]; 6] = [
    ["iops-total", "iops-total-max", "iops-total-max-length"],
    ["iops-read", "iops-read-max", "iops-read-max-length"],
    ["iops-write", "iops-write-max", "iops-write-max-length"],
    ["bps-total", "bps-total-max", "bps-total-max-length"],
    ["bps-read", "bps-read-max", "bps-read-max-length"],
    ["bps-write", "bps-write-max", "bps-write-max-length"],
];
/// Written by the toolstack into the backend's directory: bytes above which a request counts as several for `iops-*`.
pub const IOPS_SIZE: &str = "iops-size";
/// Written by the toolstack into the backend's directory: the name of a group of disks that share their limits.
pub const THROTTLE_GROUP: &str = "throttle-group";

/// [`PROTOCOL`]: [`super::X86_32`].
pub const PROTOCOL_X86_32: &str = "x86_32-abi";
/// [`PROTOCOL`]: [`super::X86_64`].
pub const PROTOCOL_X86_64: &str = "x86_64-abi";
/// [`PROTOCOL`]: [`super::X86_64`] too, as it is called on ARM, 32 bits and 64 (`XEN_IO_PROTO_ABI_ARM`, io/protocols.h).
pub const PROTOCOL_ARM: &str = "arm-abi";
/// [`PROTOCOL`]: the native layout of this machine.
pub const PROTOCOL_NATIVE: &str =
    if cfg!(any(target_arch = "arm", target_arch = "aarch64")) { PROTOCOL_ARM } else { PROTOCOL_X86_64 };
