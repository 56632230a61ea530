//! What of a process's memory is its own: what guests granted is shared memory, and not counted.

use std::fmt;
use std::fs;

/// A process's memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// Heap and stacks (`Pss_Anon` of proc_pid_smaps_rollup).
    anonymous: f64,
    /// Its part of mapped files and devices, which are the rings of io_uring too (`Pss_File`).
    files: f64,
    /// Page tables (`VmPTE` of proc_pid_status).
    page_tables: f64,
}

/// The memory of a process.
///
/// # Errors
/// It has ended, or is another user's.
pub(super) fn of(pid: u32) -> Result<Memory, String> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))
    };
    let rollup = read("smaps_rollup")?;
    Ok(Memory {
        anonymous: kib(&rollup, "Pss_Anon")?,
        files: kib(&rollup, "Pss_File")?,
        page_tables: kib(&read("status")?, "VmPTE")?,
    })
}

/// The figure of a line such as `Pss_Anon:   120 kB`.
fn kib(text: &str, key: &str) -> Result<f64, String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse().ok());
    number.ok_or_else(|| format!("no {key} in kB in /proc: expected Linux 5.4 or later"))
}

/// What each of many guests adds to a process's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PerGuest(Memory);

impl PerGuest {
    /// From the memory before and after so many guests came.
    pub(super) fn new(before: Memory, after: Memory, guests: usize) -> PerGuest {
        let per_guest = |part: fn(&Memory) -> f64| (part(&after) - part(&before)) / guests as f64;
        PerGuest(Memory {
            anonymous: per_guest(|memory| memory.anonymous),
            files: per_guest(|memory| memory.files),
            page_tables: per_guest(|memory| memory.page_tables),
        })
    }

    /// All of it, in KiB.
    pub(super) fn kib(&self) -> f64 {
        self.0.anonymous + self.0.files + self.0.page_tables
    }
}

impl fmt::Display for PerGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { anonymous, files, page_tables } = self.0;
        write!(f, "heap and stacks {anonymous:.0}, files {files:.0}, page tables {page_tables:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_per_guest_is_the_difference() {
        let before = Memory { anonymous: 100.0, files: 10.0, page_tables: 4.0 };
        let after = Memory { anonymous: 300.0, files: 30.0, page_tables: 14.0 };
        assert_eq!(PerGuest::new(before, after, 10).kib(), 23.0);
    }

    #[test]
    fn own_memory_is_read() {
        let pages = vec![1u8; 8 << 20];
        assert!(of(std::process::id()).unwrap().anonymous >= 8192.0);
        drop(pages);
        assert!(kib("Pss: 1 kB\n", "Pss_Anon").unwrap_err().contains("Pss_Anon"));
    }
}
