//! A domain's arena on the local hypervisor, as the process of a hostile domain can write it: past its own hypervisor's
//! bookkeeping, which a peer must not rely on.

use ring_abi::{GrantRef, PAGE_SIZE};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a grant entry, and the fewest entries of a table.
const ENTRY_LEN: u64 = 8;
const MIN_ENTRIES: u64 = 512;

/// An arena of a domain of this process.
#[derive(Debug)]
pub struct RawArena {
    file: File,
    marked: u32,
}

impl RawArena {
    /// Finds the arena that has `marker` at the start of a page, which its owner has shared.
    ///
    /// # Panics
    /// If there is none.
    pub fn find(marker: &[u8]) -> RawArena {
        let fds = std::fs::read_dir("/proc/self/fd").expect("/proc");
        for fd in fds.map(|fd| fd.expect("/proc").path()) {
            let is_arena =
                std::fs::read_link(&fd).is_ok_and(|link| link.to_string_lossy().contains("xpv-arena"));
            // It may have been closed since.
            let Ok(file) = File::options().read(true).write(true).open(&fd) else { continue };
            if let Some(marked) = find_page(&file, marker).filter(|_| is_arena) {
                return RawArena { file, marked };
            }
        }
        panic!("no arena of this process has the marker");
    }

    /// The frame number of the page with the marker.
    pub fn marked(&self) -> u32 {
        self.marked
    }

    /// Pages of the arena, whose numbers are below it.
    pub fn pages(&self) -> u32 {
        (self.file.metadata().expect("fstat").len() / PAGE_SIZE as u64) as u32
    }

    /// Both words of a grant entry: domain and flags, and the frame.
    pub fn entry(&self, gref: GrantRef) -> [u32; 2] {
        let at = u64::from(gref.0) * ENTRY_LEN;
        [self.word(at), self.word(at + 4)]
    }

    /// Overwrites a grant entry.
    pub fn set_entry(&self, gref: GrantRef, words: [u32; 2]) {
        let at = u64::from(gref.0) * ENTRY_LEN;
        self.set_word(at + 4, words[1]);
        self.set_word(at, words[0]);
    }

    /// Tells the peer that this frame was given up, whether or not that is so.
    pub fn give_up(&self, frame: u32) {
        let header = self.balloon();
        let produced = self.word(header);
        let slot = u64::from(produced & (self.pages() - 1));
        self.set_word(header + PAGE_SIZE as u64 + slot * 4, frame);
        self.set_word(header, produced.wrapping_add(1));
    }

    /// Overwrites both indexes of the balloon queue: the owner's and the peer's.
    pub fn set_balloon_indexes(&self, produced: u32, consumed: u32) {
        self.set_word(self.balloon(), produced);
        self.set_word(self.balloon() + 64, consumed);
    }

    /// Overwrites eight bytes of a page, if it is not of the grant table or the balloon queue.
    pub fn overwrite(&self, frame: u32, value: u64) {
        let first =
            (self.balloon() / PAGE_SIZE as u64) as u32 + 1 + (self.pages() * 4).div_ceil(PAGE_SIZE as u32);
        if frame >= first {
            let at = u64::from(frame) * PAGE_SIZE as u64 + (value % 512) * 8;
            self.file.write_all_at(&value.to_ne_bytes(), at).expect("inside the arena");
        }
    }

    fn balloon(&self) -> u64 {
        (u64::from(self.pages()) * 2).max(MIN_ENTRIES) * ENTRY_LEN
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, at).expect("inside the arena");
        u32::from_ne_bytes(bytes)
    }

    fn set_word(&self, at: u64, value: u32) {
        self.file.write_all_at(&value.to_ne_bytes(), at).expect("inside the arena");
    }
}

/// The number of the first page that begins with `marker`.
fn find_page(file: &File, marker: &[u8]) -> Option<u32> {
    let pages = file.metadata().ok()?.len() / PAGE_SIZE as u64;
    let mut bytes = vec![0; marker.len()];
    (0..pages as u32).find(|page| {
        let at = u64::from(*page) * PAGE_SIZE as u64;
        file.read_exact_at(&mut bytes, at).is_ok() && bytes == marker
    })
}
