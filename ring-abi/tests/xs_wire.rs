//! Constants of the xenstore wire protocol and of xenbus against Xen's own headers (package libxen-dev), for 64 and 32
//! bits.
#![cfg(not(any(loom, miri)))] // Runs the compiler.

#[path = "common/gcc.rs"]
mod gcc;

use std::fmt::Write as _;

use ring_abi::xenbus::XenbusState;
use ring_abi::xs_wire::{self, Header, MessageType, XsError, ring_page};

/// C source that compiles only if every fact is true.
fn facts() -> String {
    let mut c = String::from(
        "#include <stddef.h>\n#include <stdint.h>\n#include <asm-generic/errno.h>\n#include <xen/io/xs_wire.h>\n\
         #include <xen/io/xenbus.h>\n",
    );
    let mut fact = |left: &str, right: u64| {
        writeln!(c, "_Static_assert(({left}) == {right}u, \"{left}\");").unwrap();
    };
    // Types newer than the installed header (Xen 4.17) are not in it.
    for kind in MessageType::ALL {
        if !matches!(kind as u32, 23..=26) {
            fact(&constant(kind), kind as u64);
        }
    }
    for state in XenbusState::ALL {
        fact(&format!("XenbusState{}", state.name()), state as u64);
    }
    for error in XsError::ALL {
        fact(error.name(), error.errno() as u64);
    }
    fact("sizeof(xsd_errors) / sizeof(xsd_errors[0])", XsError::ALL.len() as u64);
    fact("sizeof(struct xsd_sockmsg)", xs_wire::HEADER_SIZE as u64);
    fact("XENSTORE_PAYLOAD_MAX", xs_wire::PAYLOAD_MAX as u64);
    fact("XENSTORE_ABS_PATH_MAX", xs_wire::ABS_PATH_MAX as u64);
    fact("XENSTORE_REL_PATH_MAX", xs_wire::REL_PATH_MAX as u64);
    fact("XENSTORE_RING_SIZE", ring_page::RING_SIZE as u64);
    for (field, offset) in [
        ("req", ring_page::REQ),
        ("rsp", ring_page::RSP),
        ("req_cons", ring_page::REQ_CONS),
        ("req_prod", ring_page::REQ_PROD),
        ("rsp_cons", ring_page::RSP_CONS),
        ("rsp_prod", ring_page::RSP_PROD),
        ("server_features", ring_page::SERVER_FEATURES),
        ("connection", ring_page::CONNECTION),
        ("error", ring_page::ERROR),
    ] {
        fact(&format!("offsetof(struct xenstore_domain_interface, {field})"), offset as u64);
    }
    fact("XENSTORE_SERVER_FEATURE_RECONNECTION", ring_page::feature::RECONNECTION.into());
    fact("XENSTORE_SERVER_FEATURE_ERROR", ring_page::feature::ERROR.into());
    fact("XENSTORE_CONNECTED", ring_page::CONNECTED.into());
    fact("XENSTORE_RECONNECT", ring_page::RECONNECT.into());
    fact("XENSTORE_ERROR_NONE", ring_page::ERROR_NONE.into());
    fact("XENSTORE_ERROR_COMM", ring_page::ERROR_COMM.into());
    fact("XENSTORE_ERROR_RINGIDX", ring_page::ERROR_RINGIDX.into());
    fact("XENSTORE_ERROR_PROTO", ring_page::ERROR_PROTO.into());
    c
}

/// `GetDomainPath` is `XS_GET_DOMAIN_PATH` in C.
fn constant(kind: MessageType) -> String {
    let mut name = String::from("XS");
    for letter in format!("{kind:?}").chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[test]
fn constants_are_those_of_the_headers_on_64_bits() {
    gcc::check("-m64", &facts());
}

#[test]
fn constants_are_those_of_the_headers_on_32_bits() {
    gcc::check("-m32", &facts());
}

#[test]
fn header_is_four_little_endian_words() {
    let header = Header { kind: 1, req_id: 2, tx_id: 3, len: 4 };
    assert_eq!(header.to_bytes(), [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
}
