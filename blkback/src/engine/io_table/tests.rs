//! Engines that drop or keep their tokens at the wrong time. Run by Miri too (`./test miri`), which sees each access to
//! freed memory.

use super::*;
use std::sync::mpsc;

type Table = IoTable<Vec<u8>>;

fn table() -> Table {
    IoTable::new(3, || vec![0; 64])
}

fn start(table: &mut Table, tag: u32) -> IoRequest {
    let whole = |memory: &mut Vec<u8>| memory.len() == 64;
    assert!(whole(table.memory_mut(Tag(tag))));
    let read = table.start(Tag(tag), Operation::Read, 0, |memory, slices| {
        let (first, second) = memory.split_at_mut(16);
        slices.push(second.into()) && slices.push(first.into())
    });
    read.unwrap()
}

fn write(request: &IoRequest, byte: u8) {
    for slice in request.slices() {
        slice.copy_from(&vec![byte; slice.len()]);
    }
}

#[test]
fn token_handed_back_gives_its_memory_back_to_the_table() {
    let mut table = table();
    let request = start(&mut table, 1);
    assert_eq!((request.tag(), request.len(), request.iovecs().len()), (Tag(1), 64, 2));
    assert_eq!(table.pinned(), 1);
    write(&request, 7);
    assert_eq!(table.finish(request), Tag(1));
    assert_eq!((table.memory(Tag(1)).clone(), table.pinned()), (vec![7; 64], 0));
}

#[test]
fn adjacent_slices_are_one_entry_and_more_than_fit_are_refused() {
    let mut table = table();
    let adjacent = table.start(Tag(0), Operation::Write, 9, |memory, slices| {
        memory.chunks_mut(1).all(|byte| slices.push(byte.into()))
    });
    let adjacent = adjacent.unwrap();
    assert_eq!((adjacent.iovecs().len(), adjacent.len(), adjacent.sector()), (1, 64, 9));
    let apart = |memory: &mut Vec<u8>, slices: &mut Slices<'_, '_>| {
        let _ = (memory, &slices);
        false
    };
    assert!(table.start(Tag(1), Operation::Write, 0, apart).is_none());
    // As many as an indirect request of eight pages has.
    for (count, fits) in [(4096, true), (4097, false)] {
        table.memory_mut(Tag(1)).resize(2 * count, 0);
        let many = table.start(Tag(1), Operation::Write, 0, |memory, slices| {
            memory.chunks_mut(1).step_by(2).all(|byte| slices.push(byte.into()))
        });
        assert_eq!(many.as_ref().map(|request| request.iovecs().len()), fits.then_some(count));
        if let Some(request) = many {
            table.finish(request);
        }
    }
    table.memory_mut(Tag(1)).resize(64, 0);
    // The slot is as before.
    let request = start(&mut table, 1);
    table.finish(request);
    // All parts of the entry are written through it.
    write(&adjacent, 5);
    table.finish(adjacent);
    assert_eq!(table.memory(Tag(0)), &[5; 64]);
}

#[test]
fn engine_dropped_with_its_requests_frees_them() {
    let mut table = table();
    let engine = [start(&mut table, 0), start(&mut table, 2)];
    write(&engine[1], 1);
    drop(engine);
    assert_eq!(table.pinned(), 2);
    let mut dropped = Vec::new();
    table.reclaim(&mut dropped);
    table.reclaim(&mut dropped);
    assert_eq!((dropped, table.pinned()), (vec![Tag(0), Tag(2)], 0));
    let request = start(&mut table, 2);
    drop(request);
    // Frees the slot whose token was dropped last.
    drop(table);
}

#[test]
fn engine_that_outlives_the_table_keeps_its_memory() {
    let mut table = table();
    let engine = [start(&mut table, 0), start(&mut table, 1)];
    drop(table);
    engine.iter().for_each(|request| write(request, 9));
    drop(engine);
}

#[test]
fn engine_that_forgets_its_requests_leaks_them() {
    let mut table = table();
    let request = start(&mut table, 0);
    let bytes = request.iovecs()[0];
    std::mem::forget(request);
    drop(table);
    // SAFETY: forgotten, and therefore never freed: what the kernel does in flight.
    unsafe { bytes.iov_base.cast::<u8>().write(1) };
}

#[test]
fn engine_of_several_threads_may_drop_and_hand_back_anywhere() {
    let mut table = table();
    let (back, returned) = mpsc::channel();
    let requests = [start(&mut table, 0), start(&mut table, 1), start(&mut table, 2)];
    let threads = requests.map(|request| {
        let back = back.clone();
        std::thread::spawn(move || {
            write(&request, request.tag().0 as u8);
            if request.tag() != Tag(1) {
                back.send(request).unwrap();
            }
        })
    });
    for _ in 0..2 {
        let tag = table.finish(returned.recv().unwrap());
        assert_eq!(*table.memory(tag), vec![tag.0 as u8; 64]);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    table.reclaim(&mut Vec::new());
    assert_eq!((table.memory(Tag(1)).clone(), table.pinned()), (vec![1; 64], 0));
}

#[test]
#[should_panic(expected = "in the hands of an engine")]
fn memory_of_a_pinned_slot_cannot_be_reached() {
    let mut table = table();
    let _request = start(&mut table, 0);
    table.memory_mut(Tag(0));
}

#[test]
#[should_panic(expected = "of another table")]
fn token_of_another_table_is_not_taken() {
    let mut other = table();
    let request = start(&mut other, 0);
    let mut table = table();
    start(&mut table, 0);
    table.finish(request);
}
