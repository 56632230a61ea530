use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SLOTS: u32 = 6;

/// The table beside what is known of each block, with slots that have a stamp for memory.
struct Model {
    table: Table<u32>,
    /// By file: its number now.
    numbers: Vec<u32>,
    last_number: u32,
    /// By slot: the key and the reading whose bytes it has.
    memory: Vec<(u64, u32)>,
    stamp: u32,
    /// By slot that is being filled: the key, and who waits.
    filling: BTreeMap<u32, (u64, Vec<u32>)>,
    /// Pins: the slot, the key, and the reading.
    pins: Vec<(u32, u64, u32)>,
    waiter: u32,
    told: BTreeSet<u32>,
}

impl Model {
    fn new() -> Model {
        Model {
            table: Table::new(SLOTS, 7),
            numbers: vec![1, 2],
            last_number: 2,
            memory: vec![(NO_KEY, 0); SLOTS as usize],
            stamp: 0,
            filling: BTreeMap::new(),
            pins: Vec::new(),
            waiter: 0,
            told: BTreeSet::new(),
        }
    }

    fn pinned(&mut self, at: u32, key: u64) {
        assert_eq!(self.memory[at as usize].0, key, "bytes of another block");
        assert!(!self.filling.contains_key(&at));
        self.pins.push((at, key, self.memory[at as usize].1));
    }

    fn look(&mut self, file: usize, block: u64) {
        let key = key(self.numbers[file], block).unwrap();
        if let Some(at) = self.table.find(key) {
            return self.pinned(at, key);
        }
        self.waiter += 1;
        match self.table.begin(key, self.waiter, || true) {
            Begun::Ready(_) => panic!("it was not found a moment ago"),
            Begun::Waits => {
                let of_key = self.filling.values_mut().find(|(other, _)| *other == key);
                of_key.expect("somebody reads it").1.push(self.waiter);
            }
            Begun::Fill(at) => {
                assert!(self.filling.values().all(|(other, _)| *other != key), "it is read twice");
                assert!(self.pins.iter().all(|(pinned, ..)| *pinned != at), "it is pinned");
                assert!(self.filling.insert(at, (key, vec![self.waiter])).is_none());
                // From here on it is written.
                self.memory[at as usize] = (NO_KEY, 0);
            }
            Begun::Refused(waiter) => {
                assert_eq!(waiter, self.waiter);
                let used: BTreeSet<_> =
                    self.pins.iter().map(|(at, ..)| *at).chain(self.filling.keys().copied()).collect();
                assert_eq!(used.len(), SLOTS as usize, "a slot could give way");
            }
        }
    }

    fn complete(&mut self, number: usize, ok: bool) {
        let Some(at) = self.filling.keys().copied().nth(number % self.filling.len().max(1)) else { return };
        let (key, waiters) = self.filling.remove(&at).unwrap();
        let is_current = self.numbers.iter().any(|number| u64::from(*number) == key >> BLOCK_BITS);
        self.stamp += 1;
        if ok {
            self.memory[at as usize] = (key, self.stamp);
        }
        let (told, published) = self.table.complete(at, ok.then_some(4096));
        assert_eq!(published, ok && is_current, "a failed or forgotten reading enters nothing");
        assert_eq!(told.to_vec(), waiters);
        told.iter().for_each(|waiter| assert!(self.told.insert(*waiter), "told twice"));
        match published {
            true => waiters.iter().for_each(|_| self.pinned(at, key)),
            false => self.table.give_back(&[at]),
        }
    }

    fn unpin(&mut self, number: usize) {
        if self.pins.is_empty() {
            return;
        }
        let (at, key, stamp) = self.pins.swap_remove(number % self.pins.len());
        assert_eq!(self.memory[at as usize], (key, stamp), "the bytes changed while they were pinned");
        if self.table.slot(at).unpin() {
            assert!(self.pins.iter().all(|(other, ..)| *other != at));
            self.memory[at as usize] = (NO_KEY, 0);
            self.table.give_back(&[at]);
        }
    }

    fn forget(&mut self, file: usize) {
        let old = self.numbers[file];
        self.last_number += 1;
        self.numbers[file] = self.last_number;
        let mut exclusive = Vec::new();
        self.table.forget(old, &mut exclusive);
        for at in &exclusive {
            assert!(self.pins.iter().all(|(other, ..)| other != at) && !self.filling.contains_key(at));
            assert_eq!(self.memory[*at as usize].0 >> BLOCK_BITS, u64::from(old), "it is another file's");
            self.memory[*at as usize] = (NO_KEY, 0);
        }
        self.table.give_back(&exclusive);
        (0..8).for_each(|block| assert_eq!(self.table.find(key(old, block).unwrap()), None));
    }

    fn end(mut self) {
        while !self.filling.is_empty() {
            self.complete(0, true);
        }
        while !self.pins.is_empty() {
            self.unpin(0);
        }
        (0..self.numbers.len()).for_each(|file| self.forget(file));
        assert_eq!(self.table.taken(), 0);
        assert_eq!(self.table.lock().filling.len(), 0);
    }
}

proptest! {
    #[test]
    fn table_is_as_its_model(steps in prop::collection::vec((0..12u8, 0..2usize, 0..8u64, any::<bool>()), 1..200)) {
        let mut model = Model::new();
        for (step, file, block, ok) in steps {
            match step {
                0..5 => model.look(file, block),
                5..8 => model.complete(block as usize, ok || step > 5),
                8..11 => model.unpin(block as usize),
                _ => model.forget(file),
            }
            prop_assert!(model.table.taken() <= SLOTS);
        }
        model.end();
    }
}

#[test]
fn blocks_that_are_used_survive_one_reading_of_much_more() {
    let table = Table::new(64, 1);
    let mut missed = 0;
    let mut read = |block| match table.find(key(1, block).unwrap()) {
        Some(at) => {
            table.slot(at).unpin();
        }
        None => {
            missed += 1;
            match table.begin(key(1, block).unwrap(), (), || true) {
                Begun::Fill(at) => {
                    table.complete(at, Some(1));
                    table.slot(at).unpin();
                }
                other => panic!("{other:?}"),
            }
        }
    };
    (0..16).chain(0..16).for_each(&mut read);
    for block in 100..1000 {
        read(block);
        if block % 32 == 0 {
            (0..16).for_each(&mut read);
        }
    }
    assert_eq!(missed, 16 + 900);
}

#[test]
fn block_of_a_file_that_was_forgotten_meanwhile_is_not_begun() {
    let table = Table::new(4, 1);
    assert_eq!(table.begin(key(1, 0).unwrap(), 'w', || false), Begun::Refused('w'));
    assert_eq!(table.taken(), 0);
}

#[test]
fn keys_are_those_of_one_block_of_one_file() {
    assert_eq!([key(0, 1), key(MAX_FILES, 1), key(1, 1 << BLOCK_BITS)], [None; 3]);
    let keys: BTreeSet<_> = (1..9).flat_map(|file| (0..9).map(move |block| key(file, block))).collect();
    assert_eq!(keys.len(), 72);
}
