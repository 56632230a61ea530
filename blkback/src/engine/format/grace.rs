//! When nobody uses what was known of an image any more. A ring's thread enters before it reads places, and leaves when the operations at
//! those places are complete; who has withdrawn a place waits until all have left that entered before. As SRCU of Linux
//! (kernel/rcu/srcutree.c): two counters for each ring, of which one is waited for while those who come use the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Those who use an image's places.
#[derive(Debug, Default)]
pub(super) struct Grace {
    /// Which counter those who enter use, by its lowest bit.
    turn: AtomicUsize,
    users: Mutex<Vec<Arc<[AtomicUsize; 2]>>>,
}

/// One ring's thread.
#[derive(Debug)]
pub(super) struct User {
    grace: Arc<Grace>,
    inside: Arc<[AtomicUsize; 2]>,
}

impl Grace {
    pub(super) fn join(self: &Arc<Grace>) -> User {
        let inside = Arc::<[AtomicUsize; 2]>::default();
        self.users.lock().unwrap_or_else(PoisonError::into_inner).push(inside.clone());
        User { grace: self.clone(), inside }
    }

    /// Waits until everyone has left who entered before this call. `pause` is called between two looks.
    pub(super) fn wait(&self, mut pause: impl FnMut()) {
        let turn = self.turn.load(Ordering::SeqCst);
        // One who read the turn before it last changed may have come to the other counter late.
        self.drain(turn + 1, &mut pause);
        self.turn.store(turn + 1, Ordering::SeqCst);
        self.drain(turn, &mut pause);
    }

    fn drain(&self, turn: usize, pause: &mut impl FnMut()) {
        let is_inside = || {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.retain(|user| Arc::strong_count(user) > 1 || user[turn % 2].load(Ordering::SeqCst) > 0);
            users.iter().any(|user| user[turn % 2].load(Ordering::SeqCst) > 0)
        };
        while is_inside() {
            pause();
        }
    }
}

impl User {
    /// Enters; places are read after this. The number is for [`User::leave`].
    #[inline]
    pub(super) fn enter(&self) -> usize {
        let turn = self.grace.turn.load(Ordering::SeqCst) % 2;
        self.inside[turn].fetch_add(1, Ordering::SeqCst);
        turn
    }

    #[inline]
    pub(super) fn leave(&self, turn: usize) {
        self.inside[turn].fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn those_who_entered_before_are_waited_for_and_others_are_not() {
        let grace = Arc::<Grace>::default();
        let (user, late) = (grace.join(), grace.join());
        for _ in 0..3 {
            let turn = user.enter();
            let mut pauses = 0;
            let mut entered = None;
            grace.wait(|| {
                pauses += 1;
                if pauses == 3 {
                    entered = Some(late.enter());
                    user.leave(turn);
                }
                assert!(pauses < 5, "one who came later is waited for");
            });
            assert!(pauses >= 3);
            late.leave(entered.unwrap());
        }
        grace.wait(|| panic!("nobody is inside"));
    }

    #[test]
    fn place_that_was_withdrawn_is_used_by_nobody_after_the_wait() {
        let grace = Arc::<Grace>::default();
        let (valid, done) = (AtomicBool::new(true), AtomicBool::new(false));
        let in_use = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let user = grace.join();
                let (valid, done, in_use) = (&valid, &done, &in_use);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let turn = user.enter();
                        if valid.load(Ordering::SeqCst) {
                            in_use.fetch_add(1, Ordering::SeqCst);
                            std::hint::spin_loop();
                            in_use.fetch_sub(1, Ordering::SeqCst);
                        }
                        user.leave(turn);
                    }
                });
            }
            for _ in 0..200 {
                valid.store(false, Ordering::SeqCst);
                grace.wait(std::thread::yield_now);
                assert_eq!(in_use.load(Ordering::SeqCst), 0);
                valid.store(true, Ordering::SeqCst);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
