//! What the kernel does not take at once.

use super::*;
use crate::engine::{IoTable, Tag};
use vm_memory::{MmapRegion, VolatileMemory};

#[test]
fn operation_that_the_kernel_does_not_take_is_submitted_by_the_next_poll() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let mut engine = UringEngine::new(Arc::new(file), 4).unwrap();
    let mut table = IoTable::new(4, || MmapRegion::<()>::new(4096).unwrap());
    // The kernel takes no entry behind one that it refuses: no buffer can be selected for a no-op.
    let refused = opcode::Nop::new().build().flags(squeue::Flags::BUFFER_SELECT).user_data(3);
    // SAFETY: it has no memory.
    unsafe { engine.ring.submission().push(&refused).unwrap() };
    engine.to_submit += 1;
    let read =
        table.start(Tag(0), Operation::Read, 0, |memory, slices| slices.push(memory.as_volatile_slice()));
    engine.submit(&mut vec![read.unwrap()]);
    let mut completions = Vec::new();
    engine.poll(&mut completions).unwrap();
    assert!(completions.is_empty() && engine.needs_poll());
    engine.poll(&mut completions).unwrap();
    assert!(!engine.needs_poll());
    while completions.is_empty() {
        engine.enter(1).unwrap();
        engine.reap(&mut completions);
    }
    for Completion { request, result } in completions {
        result.unwrap();
        table.finish(request);
    }
}

#[test]
fn operation_on_another_file_or_of_another_kind_is_refused_by_the_kernel() {
    let mut engine = UringEngine::new(Arc::new(tempfile::tempfile().unwrap()), 4).unwrap();
    let other = tempfile::tempfile().unwrap();
    let mut byte = [0u8];
    let path = c"/etc/passwd";
    let entries = [
        opcode::Read::new(types::Fd(other.as_raw_fd()), byte.as_mut_ptr(), 1).build(),
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
        opcode::Nop::new().build(),
        opcode::Fallocate::new(FILE, 1).build(),
    ];
    for (number, entry) in entries.into_iter().enumerate() {
        // SAFETY: what it names outlives the operation, which is complete before the loop goes on.
        unsafe { engine.ring.submission().push(&entry.user_data(7)).unwrap() };
        engine.ring.submit_and_wait(1).unwrap();
        let completion = engine.ring.completion().next().unwrap();
        assert_eq!(completion.result(), -libc::EACCES, "{number}");
    }
    let update = engine.ring.submitter().register_files_update(0, &[other.as_raw_fd()]);
    assert_eq!(update.unwrap_err().raw_os_error(), Some(libc::EACCES));
}

#[test]
fn file_of_a_dropped_engine_is_closed_at_once() {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    for _ in 0..20 {
        let file = File::options().write(true).open(&path).unwrap();
        drop(UringEngine::new(Arc::new(file), 4).unwrap());
        assert!(
            !crate::engine::claims::has_writers(&path),
            "the next opener would look for who writes to it"
        );
    }
}
