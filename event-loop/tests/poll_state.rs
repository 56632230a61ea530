//! Every interleaving of a producer, a bridge and a consumer over two bounded rings: no state has work left and nobody who
//! will look at it. There is no tick. With any one of the wake-ups removed the model finds such a state.
//!
//! The producer's frames arrive whenever its ring is served or armed, as from another port of its bridge. The bridge holds
//! the port that frames came from while the port that they go to is full. Each access to shared memory is a step of
//! its own, with the event indexes of ring.h.

mod model;

use model::{Removed, Size, find_stuck};

const SIZES: [Size; 2] = [Size { frames: 3, slots: 1, frame: 1 }, Size { frames: 2, slots: 2, frame: 2 }];

#[test]
fn work_left_is_always_looked_at() {
    for size in SIZES {
        let (stuck, states) = find_stuck(size, None);
        assert!(stuck.is_none(), "{size:?}: {stuck:#?}");
        println!("{size:?}: {states} states");
        assert!(states > 1000, "{states} states");
    }
}

#[test]
fn each_wakeup_removed_leaves_work_that_nobody_looks_at() {
    for removed in Removed::ALL {
        let found = SIZES.iter().any(|size| find_stuck(*size, Some(removed)).0.is_some());
        assert!(found, "{removed:?}: nothing waits for this wake-up");
    }
}
