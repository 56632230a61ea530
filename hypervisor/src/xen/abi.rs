//! The ioctls of Linux's Xen device nodes: request numbers and structures.
//!
//! Source: Linux's `include/uapi/xen/{gntdev,gntalloc,evtchn}.h`, installed by linux-libc-dev. All numbers are in
//! native byte order. The test at the end compares every size, offset and number with those headers.

use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef};
use std::ffi::c_void;

/// `_IOC(_IOC_NONE, kind, number, size)` of asm-generic/ioctl.h, as on every architecture Xen runs on.
const fn code(kind: u8, number: u8, size: usize) -> u64 {
    (size as u64) << 16 | (kind as u64) << 8 | number as u64
}

/// `IOCTL_GNTDEV_MAP_GRANT_REF`. Its size names room for one reference; any number may follow.
pub(super) const GNTDEV_MAP: u64 = code(b'G', 0, size_of::<MapHead>() + size_of::<MapRef>());
/// `IOCTL_GNTDEV_UNMAP_GRANT_REF`.
pub(super) const GNTDEV_UNMAP: u64 = code(b'G', 1, size_of::<Unmap>());
/// `IOCTL_GNTDEV_GRANT_COPY`.
pub(super) const GNTDEV_COPY: u64 = code(b'G', 8, size_of::<GrantCopy>());
/// `IOCTL_GNTALLOC_ALLOC_GREF`. Its size names room for one reference, padded to 24.
pub(super) const GNTALLOC_ALLOC: u64 = code(b'G', 5, size_of::<AllocHead>() + 8);
/// `IOCTL_GNTALLOC_DEALLOC_GREF`.
pub(super) const GNTALLOC_DEALLOC: u64 = code(b'G', 6, size_of::<Dealloc>());
/// `IOCTL_EVTCHN_BIND_INTERDOMAIN`.
pub(super) const EVTCHN_BIND_INTERDOMAIN: u64 = code(b'E', 1, size_of::<BindInterdomain>());
/// `IOCTL_EVTCHN_BIND_UNBOUND_PORT`.
pub(super) const EVTCHN_BIND_UNBOUND: u64 = code(b'E', 2, size_of::<BindUnbound>());
/// `IOCTL_EVTCHN_NOTIFY`.
pub(super) const EVTCHN_NOTIFY: u64 = code(b'E', 4, size_of::<Notify>());

/// `struct ioctl_gntdev_map_grant_ref` without its references.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct MapHead {
    pub(super) count: u32,
    pub(super) pad: u32,
    /// Written by the kernel: the offset for `mmap`.
    pub(super) index: u64,
}

/// `struct ioctl_gntdev_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct MapRef {
    pub(super) domid: u32,
    pub(super) gref: u32,
}

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
pub(super) struct Unmap {
    pub(super) index: u64,
    pub(super) count: u32,
    pub(super) pad: u32,
}

/// The `foreign` member of the union in `struct gntdev_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Foreign {
    pub(super) gref: GrantRef,
    pub(super) offset: u16,
    pub(super) domid: DomId,
}

/// The union in `struct gntdev_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union CopyEnd {
    pub(super) virt: *mut c_void,
    pub(super) foreign: Foreign,
}

/// `struct gntdev_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct CopySegment {
    pub(super) source: CopyEnd,
    pub(super) dest: CopyEnd,
    pub(super) len: u16,
    pub(super) flags: u16,
    /// Written by the kernel.
    pub(super) status: Status,
}

/// `struct ioctl_gntdev_grant_copy`.
#[repr(C)]
pub(super) struct GrantCopy {
    pub(super) count: u32,
    pub(super) segments: *mut CopySegment,
}

/// `struct ioctl_gntalloc_alloc_gref` without its references, which are `u32`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AllocHead {
    pub(super) domid: u16,
    pub(super) flags: u16,
    pub(super) count: u32,
    /// Written by the kernel: the offset for `mmap`.
    pub(super) index: u64,
}

/// `GNTALLOC_FLAG_WRITABLE`.
pub(super) const WRITABLE: u16 = 1;

/// `struct ioctl_gntalloc_dealloc_gref`.
#[repr(C)]
pub(super) struct Dealloc {
    pub(super) index: u64,
    pub(super) count: u32,
}

/// `struct ioctl_evtchn_bind_interdomain`.
#[repr(C)]
pub(super) struct BindInterdomain {
    pub(super) remote_domain: u32,
    pub(super) remote_port: u32,
}

/// `struct ioctl_evtchn_bind_unbound_port`.
#[repr(C)]
pub(super) struct BindUnbound {
    pub(super) remote_domain: u32,
}

/// `struct ioctl_evtchn_notify`.
#[repr(C)]
pub(super) struct Notify {
    pub(super) port: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::grant::CopyFlags;
    use std::fmt::Write as _;
    use std::io::Write as _;
    use std::mem::offset_of;
    use std::process::{Command, Stdio};

    /// A C program that compiles only if the headers agree with the lines below.
    fn probe() -> String {
        let mut c = String::from(
            "#include <stddef.h>\n#include <stdint.h>\n#include <sys/ioctl.h>\n#include <xen/xen.h>\n\
             #include <xen/event_channel.h>\n#include <xen/grant_table.h>\n#include <xen/gntdev.h>\n\
             #include <xen/gntalloc.h>\n#include <xen/evtchn.h>\n",
        );
        let mut holds = |what: &str, value: u64| {
            writeln!(c, "_Static_assert({what} == {value}ull, \"{what}\");")
                .expect("writing to a string cannot fail");
        };
        for (name, value) in [
            ("IOCTL_GNTDEV_MAP_GRANT_REF", GNTDEV_MAP),
            ("IOCTL_GNTDEV_UNMAP_GRANT_REF", GNTDEV_UNMAP),
            ("IOCTL_GNTDEV_GRANT_COPY", GNTDEV_COPY),
            ("IOCTL_GNTALLOC_ALLOC_GREF", GNTALLOC_ALLOC),
            ("IOCTL_GNTALLOC_DEALLOC_GREF", GNTALLOC_DEALLOC),
            ("IOCTL_EVTCHN_BIND_INTERDOMAIN", EVTCHN_BIND_INTERDOMAIN),
            ("IOCTL_EVTCHN_BIND_UNBOUND_PORT", EVTCHN_BIND_UNBOUND),
            ("IOCTL_EVTCHN_NOTIFY", EVTCHN_NOTIFY),
            ("GNTCOPY_source_gref", CopyFlags::SOURCE_GREF.bits().into()),
            ("GNTCOPY_dest_gref", CopyFlags::DEST_GREF.bits().into()),
            ("GNTALLOC_FLAG_WRITABLE", WRITABLE.into()),
        ] {
            holds(name, value);
        }
        for (structure, field, offset) in [
            ("ioctl_gntdev_map_grant_ref", "count", offset_of!(MapHead, count)),
            ("ioctl_gntdev_map_grant_ref", "index", offset_of!(MapHead, index)),
            ("ioctl_gntdev_map_grant_ref", "refs", size_of::<MapHead>()),
            ("ioctl_gntdev_grant_ref", "ref", offset_of!(MapRef, gref)),
            ("ioctl_gntdev_unmap_grant_ref", "count", offset_of!(Unmap, count)),
            ("gntdev_grant_copy_segment", "source.foreign.offset", offset_of!(Foreign, offset)),
            ("gntdev_grant_copy_segment", "source.foreign.domid", offset_of!(Foreign, domid)),
            ("gntdev_grant_copy_segment", "dest", offset_of!(CopySegment, dest)),
            ("gntdev_grant_copy_segment", "len", offset_of!(CopySegment, len)),
            ("gntdev_grant_copy_segment", "flags", offset_of!(CopySegment, flags)),
            ("gntdev_grant_copy_segment", "status", offset_of!(CopySegment, status)),
            ("ioctl_gntdev_grant_copy", "segments", offset_of!(GrantCopy, segments)),
            ("ioctl_gntalloc_alloc_gref", "flags", offset_of!(AllocHead, flags)),
            ("ioctl_gntalloc_alloc_gref", "count", offset_of!(AllocHead, count)),
            ("ioctl_gntalloc_alloc_gref", "index", offset_of!(AllocHead, index)),
            ("ioctl_gntalloc_alloc_gref", "gref_ids", size_of::<AllocHead>()),
            ("ioctl_gntalloc_dealloc_gref", "count", offset_of!(Dealloc, count)),
            ("ioctl_evtchn_bind_interdomain", "remote_port", offset_of!(BindInterdomain, remote_port)),
        ] {
            holds(&format!("offsetof(struct {structure}, {field})"), offset as u64);
        }
        for (structure, size) in [
            ("ioctl_gntdev_grant_ref", size_of::<MapRef>()),
            ("gntdev_grant_copy_segment", size_of::<CopySegment>()),
            ("ioctl_gntalloc_dealloc_gref", size_of::<Dealloc>()),
            ("ioctl_evtchn_notify", size_of::<Notify>()),
        ] {
            holds(&format!("sizeof(struct {structure})"), size as u64);
        }
        c
    }

    /// The headers are linux-libc-dev's and, for what those include, libxen-dev's.
    #[test]
    fn ioctls_match_the_linux_headers() {
        let mut compiler = Command::new("gcc")
            .args(["-fsyntax-only", "-x", "c", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("gcc is needed: apt-get install gcc linux-libc-dev libxen-dev");
        compiler.stdin.take().expect("piped").write_all(probe().as_bytes()).expect("gcc reads its input");
        let output = compiler.wait_with_output().expect("gcc exits");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "is linux-libc-dev or libxen-dev missing?\n{errors}");
    }
}
