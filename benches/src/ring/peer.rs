//! Xen's own C macros, compiled at run time from `c/ring_peer.c` against libxen-dev and loaded.
#![allow(unsafe_code)] // Calls into a C shared object.

use crate::missing::not_started;
use libloading::{Library, Symbol};
use ring_abi::PAGE_SIZE;
use ring_abi::shm::Memory;
use ring_abi::testing::Pages;
use std::ffi::c_void;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = include_str!("../../c/ring_peer.c");
const HEADERS: [&str; 2] = ["/usr/include/xen/io/ring.h", "/usr/include/xenctrl.h"];

type Init = unsafe extern "C" fn(*mut c_void);
type OneThread = unsafe extern "C" fn(*mut c_void, usize, u32, u32, u8) -> u64;
type FrontHalf = unsafe extern "C" fn(*mut c_void, usize, u64, u32, u8);
type BackHalf = unsafe extern "C" fn(*mut c_void, usize, u64);

/// The loaded peer.
#[derive(Debug)]
pub struct Peer {
    library: Library,
}

impl Peer {
    /// Compiles and loads it.
    ///
    /// # Errors
    /// A sentence naming the Debian package where a compiler or header is missing, or the compiler's words.
    pub fn build() -> Result<Self, String> {
        if let Some(missing) = HEADERS.iter().find(|h| !Path::new(h).exists()) {
            return Err(format!("{missing} is missing: apt-get install libxen-dev"));
        }
        let dir = tempfile::tempdir().map_err(|e| format!("temporary directory: {e}"))?;
        let source = dir.path().join("ring_peer.c");
        let object = dir.path().join("ring_peer.so");
        std::fs::write(&source, SOURCE).map_err(|e| format!("{}: {e}", source.display()))?;
        let out = Command::new("cc")
            .args(["-std=gnu11", "-O3", "-shared", "-fPIC", "-o"])
            .args([&object, &source])
            .output()
            .map_err(|e| not_started("cc", "gcc", &e))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            return Err(format!(
                "cc cannot compile c/ring_peer.c (apt-get install libc6-dev?): {}",
                said.trim()
            ));
        }
        // SAFETY: our own object, which has no initialisers.
        let library = unsafe { Library::new(&object) }.map_err(|e| e.to_string())?;
        Ok(Self { library })
    }

    fn symbol<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: the types above are those of `c/ring_peer.c`, which is compiled into this program.
        unsafe { self.library.get(name) }.expect("a function of ring_peer.c")
    }

    /// `peer_one_thread`: the requests answered.
    pub fn one_thread(&self, page: &Pages, batches: u32, batch: u32, segments: u8) -> u64 {
        let call = self.symbol::<OneThread>("peer_one_thread");
        // SAFETY: the page is `len` bytes, and nobody else uses it meanwhile.
        unsafe { call(page.base().as_ptr().cast(), PAGE_SIZE, batches, batch, segments) }
    }

    /// `peer_init`: an empty ring.
    pub fn init(&self, page: &Pages) {
        // SAFETY: the page holds the header.
        unsafe { self.symbol::<Init>("peer_init")(page.base().as_ptr().cast()) }
    }

    /// `peer_front`, which returns when all requests are answered.
    pub fn front(&self, page: &Pages, requests: u64, batch: u32, segments: u8) {
        let call = self.symbol::<FrontHalf>("peer_front");
        // SAFETY: the page is `len` bytes and was initialised; the other half is the only other user.
        unsafe { call(page.base().as_ptr().cast(), PAGE_SIZE, requests, batch, segments) }
    }

    /// `peer_back`, which returns when it has answered all requests.
    pub fn back(&self, page: &Pages, requests: u64) {
        let call = self.symbol::<BackHalf>("peer_back");
        // SAFETY: as for `front`.
        unsafe { call(page.base().as_ptr().cast(), PAGE_SIZE, requests) }
    }
}
