//! One read of 4 KiB through both ends of a disk, one after the other, as of row B5.

use super::{Subject, table};
use crate::block::ReadsOneByOne;
use nix::unistd::gettid;
use std::fs;
use std::path::Path;

/// Ours, on a file past the page cache; both ends sleep.
///
/// # Errors
/// The machine does not come up, or strace is not installed.
pub(super) fn table_of_read(_: &Path) -> Result<String, String> {
    let mut disk = ReadsOneByOne::start()?;
    let ring = thread_of_ring()?;
    let (orders, to_guest) = std::sync::mpsc::channel::<usize>();
    let (done, answers) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (tids, tid) = std::sync::mpsc::channel();
        let disk = &mut disk;
        scope.spawn(move || {
            tids.send(gettid().as_raw().cast_unsigned()).expect("it is waited for");
            for operations in to_guest {
                disk.read(operations);
                done.send(()).expect("it is waited for");
            }
        });
        let guest = tid.recv().expect("its thread runs");
        let thread = |name: &str, id| Subject { name: name.to_owned(), id, is_process: false };
        let subjects = [thread("guest", guest), thread("dom0, the disk's ring", ring)];
        let counted = table(&subjects, |operations| {
            orders.send(operations).expect("the guest's thread runs");
            answers.recv().map_err(|_| "the guest's thread has ended".into())
        });
        drop(orders);
        counted
    })
}

/// The thread that blkback names after its frontend's domain.
fn thread_of_ring() -> Result<u32, String> {
    let failed = |e: std::io::Error| format!("/proc/self/task: {e}");
    for entry in fs::read_dir("/proc/self/task").map_err(failed)? {
        let directory = entry.map_err(failed)?;
        let name = fs::read_to_string(directory.path().join("comm")).unwrap_or_default();
        if let (true, Ok(id)) = (name.starts_with("vbd-"), directory.file_name().to_string_lossy().parse()) {
            return Ok(id);
        }
    }
    Err("no thread of this process serves a disk's ring".into())
}
