//! Names of the store's keys against Xen's own headers (package libxen-dev), which have them in comments.
#![cfg(not(any(loom, miri)))] // Reads the headers.

use ring_abi::{blkif, netif};

#[test]
fn key_values_are_those_of_protocols_h() {
    let text = std::fs::read_to_string("/usr/include/xen/io/protocols.h").expect("package libxen-dev");
    for value in [blkif::key::PROTOCOL_X86_32, blkif::key::PROTOCOL_X86_64] {
        assert!(text.contains(&format!("\"{value}\"")), "{value}");
    }
}

#[test]
fn key_names_are_those_of_the_headers() {
    let read = |name: &str| {
        std::fs::read_to_string(format!("/usr/include/xen/io/{name}")).expect("package libxen-dev")
    };
    let block = read("blkif.h");
    let net = read("netif.h");
    use blkif::key as b;
    for key in [
        b::FEATURE_BARRIER,
        b::FEATURE_FLUSH_CACHE,
        b::FEATURE_DISCARD,
        b::FEATURE_PERSISTENT,
        b::FEATURE_MAX_INDIRECT_SEGMENTS,
        b::MAX_RING_PAGE_ORDER,
        b::MAX_RING_PAGES,
        b::MULTI_QUEUE_MAX_QUEUES,
        b::MULTI_QUEUE_NUM_QUEUES,
        b::RING_REF,
        b::RING_PAGE_ORDER,
        b::NUM_RING_PAGES,
        b::EVENT_CHANNEL,
        b::PROTOCOL,
        b::SECTORS,
        b::SECTOR_SIZE,
        b::PHYSICAL_SECTOR_SIZE,
        b::INFO,
        b::DISCARD_ALIGNMENT,
        b::DISCARD_GRANULARITY,
        b::DISCARD_SECURE,
        b::VIRTUAL_DEVICE,
        b::DEVICE_TYPE,
        b::TRUSTED,
        b::MODE,
        b::PARAMS,
        b::PHYSICAL_DEVICE,
        b::PHYSICAL_DEVICE_PATH,
        b::TYPE,
        b::DISCARD_ENABLE,
        b::DIRECT_IO_SAFE,
    ] {
        assert!(block.contains(key), "{key}");
    }
    use netif::key as n;
    for key in [
        n::FEATURE_GSO_TCPV4,
        n::FEATURE_GSO_TCPV6,
        n::FEATURE_NO_CSUM_OFFLOAD,
        n::FEATURE_IPV6_CSUM_OFFLOAD,
        n::FEATURE_RX_NOTIFY,
        n::FEATURE_SPLIT_EVENT_CHANNELS,
        n::FEATURE_MULTICAST_CONTROL,
        n::FEATURE_DYNAMIC_MULTICAST_CONTROL,
        n::REQUEST_MULTICAST_CONTROL,
        n::FEATURE_CTRL_RING,
        n::MULTI_QUEUE_MAX_QUEUES,
        n::MULTI_QUEUE_NUM_QUEUES,
        n::TX_RING_REF,
        n::RX_RING_REF,
        n::EVENT_CHANNEL,
        n::EVENT_CHANNEL_TX,
        n::EVENT_CHANNEL_RX,
        n::CTRL_RING_REF,
        n::EVENT_CHANNEL_CTRL,
        n::CARRIER,
        n::MTU,
        n::TRUSTED,
    ] {
        assert!(net.contains(key), "{key}");
    }
}
