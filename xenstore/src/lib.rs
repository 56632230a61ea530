//! Xenstore: wire client, xenbus handshake, and the store itself
