//! Every size, offset and constant against Xen's own headers (package libxen-dev), for 64 and 32 bits: a C program of
//! static assertions, which is compiled and not run. Those of xenstore are in `xs_wire.rs`.
#![cfg(not(any(loom, miri)))] // Runs the compiler.

#[path = "common/gcc.rs"]
mod gcc;

use ring_abi::blkif::{self, X86_32, X86_64};
use ring_abi::event::{Op, State, fifo, two_level};
use ring_abi::grant::{self, CopyFlags, GrantRef, MapFlags, entry, op};
use ring_abi::netif::{self, RxFlags, TxFlags, ctrl, extra};
use ring_abi::ring::{Protocol, slots};
use ring_abi::shm::HEADER_LEN;
use ring_abi::{DomId, console};
use std::fmt::Write as _;
use std::mem::offset_of;

const INCLUDES: &str = "#include <stddef.h>\n#include <stdint.h>\n#include <asm-generic/errno.h>\n\
    #define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__\n#include <xen/xen.h>\n\
    #include <xen/grant_table.h>\n#include <xen/event_channel.h>\n#include <xen/io/console.h>\n\
    #include <xen/io/blkif.h>\n#include <xen/io/netif.h>\n#include <xen/io/protocols.h>\n";

/// C source that compiles only if every fact is true.
struct Facts(String);

impl Facts {
    /// A C expression and its value.
    fn is(&mut self, c: &str, value: impl TryInto<i64>) {
        let value = value.try_into().ok().expect("fits 64 bits");
        writeln!(self.0, "_Static_assert((long long)({c}) == {value}ll, \"{c}\");").unwrap();
    }

    /// Constants whose names start with `prefix`.
    fn all<const N: usize>(&mut self, prefix: &str, facts: [(&str, i64); N]) {
        for (name, value) in facts {
            self.is(&format!("{prefix}{name}"), value);
        }
    }

    /// A structure: its size and the offsets of its fields.
    fn structure(&mut self, c: &str, size: usize, fields: &[(&str, usize)]) {
        self.is(&format!("sizeof({c})"), size as i64);
        for (field, offset) in fields {
            self.is(&format!("offsetof({c}, {field})"), *offset as i64);
        }
    }
}

/// `fields!(Type: field = "c_name", ...)`: the offsets of a structure that is `repr(C)`.
macro_rules! fields {
    ($type:ty: $($field:ident = $c:literal),*) => { &[$(($c, offset_of!($type, $field))),*] };
}

fn blocks(f: &mut Facts) {
    f.all(
        "BLKIF_",
        [
            ("OP_READ", blkif::OP_READ.into()),
            ("OP_WRITE", blkif::OP_WRITE.into()),
            ("OP_WRITE_BARRIER", blkif::OP_WRITE_BARRIER.into()),
            ("OP_FLUSH_DISKCACHE", blkif::OP_FLUSH_DISKCACHE.into()),
            ("OP_DISCARD", blkif::OP_DISCARD.into()),
            ("OP_INDIRECT", blkif::OP_INDIRECT.into()),
            ("MAX_SEGMENTS_PER_REQUEST", blkif::MAX_SEGMENTS as i64),
            ("MAX_INDIRECT_PAGES_PER_REQUEST", blkif::MAX_INDIRECT_PAGES as i64),
            ("DISCARD_SECURE", blkif::DISCARD_SECURE.into()),
            ("RSP_OKAY", blkif::Status::OKAY.0.into()),
            ("RSP_ERROR", blkif::Status::ERROR.0.into()),
            ("RSP_EOPNOTSUPP", blkif::Status::EOPNOTSUPP.0.into()),
        ],
    );
    f.all(
        "VDISK_",
        [
            ("CDROM", blkif::info::CDROM.into()),
            ("REMOVABLE", blkif::info::REMOVABLE.into()),
            ("READONLY", blkif::info::READONLY.into()),
        ],
    );
    let segment = fields!(blkif::Segment: gref = "gref", first_sect = "first_sect", last_sect = "last_sect");
    f.structure("struct blkif_request_segment", size_of::<blkif::Segment>(), segment);
}

fn ring<P: Protocol>(f: &mut Facts, name: &str) {
    ring_sizes::<P>(f, name);
    f.structure(
        &format!("struct {name}_sring"),
        // `ring[1]`, and the structure's alignment.
        (HEADER_LEN + P::SLOT).next_multiple_of(4),
        &[
            ("req_prod", 0),
            ("req_event", 4),
            ("rsp_prod", 8),
            ("rsp_event", 12),
            ("pvt", 16),
            ("ring", HEADER_LEN),
        ],
    );
}

/// The size of a ring's slot, and the number of slots for each number of pages.
fn ring_sizes<P: Protocol>(f: &mut Facts, name: &str) {
    f.is(&format!("sizeof(union {name}_sring_entry)"), P::SLOT as i64);
    for pages in [1, 2, 4, 8, 16] {
        f.is(&format!("__RING_SIZE(({name}_sring_t *)0, {pages}ul * 4096)"), slots(P::SLOT, pages * 4096));
    }
}

fn nets(f: &mut Facts) {
    f.all(
        "",
        [
            ("XEN_NETIF_NR_SLOTS_MIN", netif::SLOTS_MIN as i64),
            ("XEN_NETIF_MAX_TX_SIZE", netif::MAX_TX_SIZE as i64),
            ("NETTXF_csum_blank", TxFlags::CSUM_BLANK.bits().into()),
            ("NETTXF_data_validated", TxFlags::DATA_VALIDATED.bits().into()),
            ("NETTXF_more_data", TxFlags::MORE_DATA.bits().into()),
            ("NETTXF_extra_info", TxFlags::EXTRA_INFO.bits().into()),
            ("NETRXF_data_validated", RxFlags::DATA_VALIDATED.bits().into()),
            ("NETRXF_csum_blank", RxFlags::CSUM_BLANK.bits().into()),
            ("NETRXF_more_data", RxFlags::MORE_DATA.bits().into()),
            ("NETRXF_extra_info", RxFlags::EXTRA_INFO.bits().into()),
            ("NETIF_RSP_DROPPED", netif::Status::DROPPED.0.into()),
            ("NETIF_RSP_ERROR", netif::Status::ERROR.0.into()),
            ("NETIF_RSP_OKAY", netif::Status::OKAY.0.into()),
            ("NETIF_RSP_NULL", netif::Status::NULL.0.into()),
        ],
    );
    f.all(
        "XEN_NETIF_",
        [
            ("EXTRA_TYPE_GSO", extra::TYPE_GSO.into()),
            ("EXTRA_TYPE_MCAST_ADD", extra::TYPE_MCAST_ADD.into()),
            ("EXTRA_TYPE_MCAST_DEL", extra::TYPE_MCAST_DEL.into()),
            ("EXTRA_TYPE_HASH", extra::TYPE_HASH.into()),
            ("EXTRA_FLAG_MORE", extra::FLAG_MORE.into()),
            ("GSO_TYPE_TCPV4", extra::GSO_TCPV4.into()),
            ("GSO_TYPE_TCPV6", extra::GSO_TCPV6.into()),
        ],
    );
    f.structure(
        "struct netif_extra_info",
        8,
        &[("u.gso.size", 2), ("u.gso.type", 4), ("u.mcast", 2), ("u.hash", 2)],
    );
    f.structure("struct netif_tx_request", 12, &[("offset", 4), ("flags", 6), ("id", 8), ("size", 10)]);
    f.structure("struct netif_tx_response", 4, &[("id", 0), ("status", 2)]);
    f.structure("struct netif_rx_request", 8, &[("id", 0), ("gref", 4)]);
    f.structure("struct netif_rx_response", 8, &[("id", 0), ("offset", 2), ("flags", 4), ("status", 6)]);
    control(f);
}

fn control(f: &mut Facts) {
    use ctrl::{Algorithm, GrefFlags, HashTypes, Status, Type};
    f.all(
        "XEN_NETIF_CTRL_TYPE_",
        [
            ("INVALID", Type::INVALID.0.into()),
            ("GET_HASH_FLAGS", Type::GET_HASH_FLAGS.0.into()),
            ("SET_HASH_FLAGS", Type::SET_HASH_FLAGS.0.into()),
            ("SET_HASH_KEY", Type::SET_HASH_KEY.0.into()),
            ("GET_HASH_MAPPING_SIZE", Type::GET_HASH_MAPPING_SIZE.0.into()),
            ("SET_HASH_MAPPING_SIZE", Type::SET_HASH_MAPPING_SIZE.0.into()),
            ("SET_HASH_MAPPING", Type::SET_HASH_MAPPING.0.into()),
            ("SET_HASH_ALGORITHM", Type::SET_HASH_ALGORITHM.0.into()),
            ("GET_GREF_MAPPING_SIZE", Type::GET_GREF_MAPPING_SIZE.0.into()),
            ("ADD_GREF_MAPPING", Type::ADD_GREF_MAPPING.0.into()),
            ("DEL_GREF_MAPPING", Type::DEL_GREF_MAPPING.0.into()),
        ],
    );
    f.all(
        "XEN_NETIF_CTRL",
        [
            ("_STATUS_SUCCESS", Status::SUCCESS.0.into()),
            ("_STATUS_NOT_SUPPORTED", Status::NOT_SUPPORTED.0.into()),
            ("_STATUS_INVALID_PARAMETER", Status::INVALID_PARAMETER.0.into()),
            ("_STATUS_BUFFER_OVERFLOW", Status::BUFFER_OVERFLOW.0.into()),
            ("_HASH_TYPE_IPV4", HashTypes::IPV4.bits().into()),
            ("_HASH_TYPE_IPV4_TCP", HashTypes::IPV4_TCP.bits().into()),
            ("_HASH_TYPE_IPV6", HashTypes::IPV6.bits().into()),
            ("_HASH_TYPE_IPV6_TCP", HashTypes::IPV6_TCP.bits().into()),
            ("_HASH_ALGORITHM_NONE", Algorithm::NONE.0.into()),
            ("_HASH_ALGORITHM_TOEPLITZ", Algorithm::TOEPLITZ.0.into()),
            ("F_GREF_readonly", GrefFlags::READONLY.bits().into()),
        ],
    );
    f.structure("struct xen_netif_ctrl_request", 16, &[("id", 0), ("type", 2), ("data", 4)]);
    f.structure("struct xen_netif_ctrl_response", 12, &[("id", 0), ("type", 2), ("status", 4), ("data", 8)]);
    let gref = fields!(ctrl::Gref: gref = "ref", flags = "flags", status = "status");
    f.structure("struct xen_netif_gref", size_of::<ctrl::Gref>(), gref);
}

fn grants(f: &mut Facts) {
    use entry::{Flags, Kind};
    f.all(
        "GTF_",
        [
            ("invalid", Kind::Invalid as i64),
            ("permit_access", Kind::PermitAccess as i64),
            ("accept_transfer", Kind::AcceptTransfer as i64),
            ("transitive", Kind::Transitive as i64),
            ("type_mask", entry::TYPE_MASK.into()),
            ("readonly", Flags::READONLY.bits().into()),
            ("reading", Flags::READING.bits().into()),
            ("writing", Flags::WRITING.bits().into()),
            ("PWT", Flags::PWT.bits().into()),
            ("PCD", Flags::PCD.bits().into()),
            ("PAT", Flags::PAT.bits().into()),
            ("sub_page", Flags::SUB_PAGE.bits().into()),
            ("transfer_committed", Flags::TRANSFER_COMMITTED.bits().into()),
            ("transfer_completed", Flags::TRANSFER_COMPLETED.bits().into()),
        ],
    );
    f.all(
        "GNT",
        [
            ("TAB_NR_RESERVED_ENTRIES", GrantRef::FIRST_FREE.0.into()),
            ("TAB_RESERVED_CONSOLE", GrantRef::CONSOLE.0.into()),
            ("TAB_RESERVED_XENSTORE", GrantRef::XENSTORE.0.into()),
            ("MAP_device_map", MapFlags::DEVICE_MAP.bits().into()),
            ("MAP_host_map", MapFlags::HOST_MAP.bits().into()),
            ("MAP_readonly", MapFlags::READONLY.bits().into()),
            ("MAP_application_map", MapFlags::APPLICATION_MAP.bits().into()),
            ("MAP_contains_pte", MapFlags::CONTAINS_PTE.bits().into()),
            ("COPY_source_gref", CopyFlags::SOURCE_GREF.bits().into()),
            ("COPY_dest_gref", CopyFlags::DEST_GREF.bits().into()),
        ],
    );
    f.all(
        "GNTTABOP_",
        [
            ("map_grant_ref", op::MAP_GRANT_REF.into()),
            ("unmap_grant_ref", op::UNMAP_GRANT_REF.into()),
            ("setup_table", op::SETUP_TABLE.into()),
            ("dump_table", op::DUMP_TABLE.into()),
            ("transfer", op::TRANSFER.into()),
            ("copy", op::COPY.into()),
            ("query_size", op::QUERY_SIZE.into()),
            ("unmap_and_replace", op::UNMAP_AND_REPLACE.into()),
            ("set_version", op::SET_VERSION.into()),
            ("get_status_frames", op::GET_STATUS_FRAMES.into()),
            ("get_version", op::GET_VERSION.into()),
            ("swap_grant_ref", op::SWAP_GRANT_REF.into()),
            ("cache_flush", op::CACHE_FLUSH.into()),
        ],
    );
    for (status, name) in grant::Status::ALL {
        f.is(&format!("GNTST_{name}"), status.0);
    }
    f.is("DOMID_FIRST_RESERVED", DomId::FIRST_RESERVED.0);
    f.is("DOMID_SELF", DomId::SELF.0);
    entries(f);
}

fn entries(f: &mut Facts) {
    use entry::{FullPage, Header, SubPage, Transitive, V1, V2_LEN};
    f.structure(
        "grant_entry_v1_t",
        size_of::<V1>(),
        fields!(V1: flags = "flags", domid = "domid", frame = "frame"),
    );
    f.structure(
        "grant_entry_header_t",
        size_of::<Header>(),
        fields!(Header: flags = "flags", domid = "domid"),
    );
    f.structure(
        "grant_entry_v2_t",
        V2_LEN,
        fields!(FullPage: header = "full_page.hdr", frame = "full_page.frame"),
    );
    let sub = fields!(SubPage: page_off = "sub_page.page_off", length = "sub_page.length", frame = "sub_page.frame");
    f.structure("grant_entry_v2_t", V2_LEN, sub);
    let transitive = fields!(Transitive: trans_domid = "transitive.trans_domid", gref = "transitive.gref");
    f.structure("grant_entry_v2_t", V2_LEN, transitive);
    f.is("sizeof(grant_status_t)", size_of::<entry::Status>() as i64);
    let map = fields!(op::Map: host_addr = "host_addr", flags = "flags", gref = "ref", dom = "dom", status = "status",
        handle = "handle", dev_bus_addr = "dev_bus_addr");
    f.structure("struct gnttab_map_grant_ref", size_of::<op::Map>(), map);
    let unmap = fields!(op::Unmap: host_addr = "host_addr", dev_bus_addr = "dev_bus_addr", handle = "handle",
        status = "status");
    f.structure("struct gnttab_unmap_grant_ref", size_of::<op::Unmap>(), unmap);
}

fn events(f: &mut Facts) {
    f.all(
        "EVTCHNOP_",
        [
            ("bind_interdomain", Op::BindInterdomain as i64),
            ("bind_virq", Op::BindVirq as i64),
            ("bind_pirq", Op::BindPirq as i64),
            ("close", Op::Close as i64),
            ("send", Op::Send as i64),
            ("status", Op::Status as i64),
            ("alloc_unbound", Op::AllocUnbound as i64),
            ("bind_ipi", Op::BindIpi as i64),
            ("bind_vcpu", Op::BindVcpu as i64),
            ("unmask", Op::Unmask as i64),
            ("reset", Op::Reset as i64),
            ("init_control", Op::InitControl as i64),
            ("expand_array", Op::ExpandArray as i64),
            ("set_priority", Op::SetPriority as i64),
        ],
    );
    f.all(
        "EVTCHNSTAT_",
        [
            ("closed", State::Closed as i64),
            ("unbound", State::Unbound as i64),
            ("interdomain", State::Interdomain as i64),
            ("pirq", State::Pirq as i64),
            ("virq", State::Virq as i64),
            ("ipi", State::Ipi as i64),
        ],
    );
    f.all(
        "",
        [
            ("1u << EVTCHN_FIFO_PENDING", fifo::EventWord::PENDING.into()),
            ("1u << EVTCHN_FIFO_MASKED", fifo::EventWord::MASKED.into()),
            ("1u << EVTCHN_FIFO_LINKED", fifo::EventWord::LINKED.into()),
            ("1u << EVTCHN_FIFO_BUSY", fifo::EventWord::BUSY.into()),
        ],
    );
    f.all(
        "EVTCHN_FIFO_",
        [
            ("LINK_BITS", fifo::LINK_BITS.into()),
            ("LINK_MASK", fifo::LINK_MASK.into()),
            ("NR_CHANNELS", fifo::CHANNELS as i64),
            ("PRIORITY_MAX", fifo::PRIORITY_MAX.into()),
            ("PRIORITY_DEFAULT", fifo::PRIORITY_DEFAULT.into()),
            ("PRIORITY_MIN", fifo::PRIORITY_MIN.into()),
            ("MAX_QUEUES", fifo::QUEUES as i64),
        ],
    );
    f.is("sizeof(event_word_t)", size_of::<fifo::EventWord>() as i64);
    let block = fields!(fifo::ControlBlock: ready = "ready", head = "head");
    f.structure("struct evtchn_fifo_control_block", size_of::<fifo::ControlBlock>(), block);
    let upcall = [
        ("evtchn_upcall_pending", two_level::UPCALL_PENDING),
        ("evtchn_upcall_mask", two_level::UPCALL_MASK),
    ];
    f.structure("struct vcpu_info", two_level::VCPU_INFO_LEN, &upcall);
    f.is("XEN_LEGACY_MAX_VCPUS", two_level::LEGACY_MAX_VCPUS as i64);
}

fn consoles(f: &mut Facts) {
    let i = console::IN;
    let o = console::OUT;
    let fields = [
        ("in", i.ring),
        ("out", o.ring),
        ("in_cons", i.cons),
        ("in_prod", i.prod),
        ("out_cons", o.cons),
        ("out_prod", o.prod),
    ];
    // `connection` is newer than the installed header (Xen 4.17) and starts at that structure's end.
    f.structure("struct xencons_interface", console::CONNECTION, &fields);
    f.is("sizeof(((struct xencons_interface *)0)->in)", i.size);
    f.is("sizeof(((struct xencons_interface *)0)->out)", o.size);
}

fn two_levels(f: &mut Facts, layout: two_level::Layout) {
    f.is("sizeof(xen_ulong_t)", layout.word as i64);
    f.is("EVTCHN_2L_NR_CHANNELS", layout.channels as i64);
    let fields = [("evtchn_pending", layout.pending), ("evtchn_mask", layout.mask)];
    f.structure("struct shared_info", layout.shared_info_len, &fields);
    f.is("offsetof(struct vcpu_info, evtchn_pending_sel)", layout.pending_sel as i64);
}

/// The facts that are the same for both word sizes.
fn common() -> Facts {
    let mut f = Facts(INCLUDES.into());
    blocks(&mut f);
    nets(&mut f);
    ring::<netif::Tx>(&mut f, "netif_tx");
    ring::<netif::Rx>(&mut f, "netif_rx");
    ring::<ctrl::Ctrl>(&mut f, "xen_netif_ctrl");
    grants(&mut f);
    events(&mut f);
    consoles(&mut f);
    f
}

#[test]
fn sizes_offsets_and_constants_are_those_of_the_headers_on_64_bits() {
    let mut f = common();
    two_levels(&mut f, two_level::Layout::BITS64);
    ring_sizes::<X86_64>(&mut f, "blkif");
    f.structure("blkif_request_t", 112, &[("handle", 2), ("id", 8), ("sector_number", 16), ("seg", 24)]);
    f.structure("struct blkif_request_discard", 32, &[("flag", 1), ("id", 8), ("nr_sectors", 24)]);
    let indirect =
        [("nr_segments", 2), ("id", 8), ("sector_number", 16), ("handle", 24), ("indirect_grefs", 28)];
    f.structure("struct blkif_request_indirect", 64, &indirect);
    f.structure("blkif_response_t", 16, &[("id", 0), ("operation", 8), ("status", 10)]);
    let copy = fields!(op::CopyOp: source = "source", dest = "dest", len = "len", flags = "flags", status = "status");
    f.structure("struct gnttab_copy", size_of::<op::CopyOp>(), copy);
    let end = fields!(op::CopyEnd: frame = "u", domid = "domid", offset = "offset");
    f.structure("struct gnttab_copy_ptr", size_of::<op::CopyEnd>(), end);
    let transfer = fields!(op::Transfer: mfn = "mfn", domid = "domid", gref = "ref", status = "status");
    f.structure("struct gnttab_transfer", size_of::<op::Transfer>(), transfer);
    gcc::check("-m64", &f.0);
}

#[test]
fn sizes_offsets_and_constants_are_those_of_the_headers_on_32_bits() {
    let mut f = common();
    two_levels(&mut f, two_level::Layout::BITS32);
    ring_sizes::<X86_32>(&mut f, "blkif");
    f.structure("blkif_request_t", 108, &[("handle", 2), ("id", 4), ("sector_number", 12), ("seg", 20)]);
    f.structure("struct blkif_request_discard", 28, &[("flag", 1), ("id", 4), ("nr_sectors", 20)]);
    let indirect =
        [("nr_segments", 2), ("id", 4), ("sector_number", 12), ("handle", 20), ("indirect_grefs", 24)];
    f.structure("struct blkif_request_indirect", 64, &indirect);
    f.structure("blkif_response_t", 12, &[("id", 0), ("operation", 8), ("status", 10)]);
    f.is("sizeof(struct gnttab_copy)", op::COPY_LEN_32 as i64);
    f.is("sizeof(struct gnttab_transfer)", op::TRANSFER_LEN_32 as i64);
    gcc::check("-m32", &f.0);
}

#[test]
#[should_panic(expected = "static assertion failed")]
fn wrong_constant_fails_to_compile() {
    let mut f = common();
    f.is("BLKIF_OP_WRITE", 2);
    gcc::check("-m64", &f.0);
}
