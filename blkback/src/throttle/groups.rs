//! Who shares which limits: the rings of a disk, and the disks of a group.
//!
//! Of a group's disks each may name limits. Of each value the smallest counts, so that the limits do not depend on who came first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::limiter::{Credit, Throttle};
use super::limits::IoLimits;

/// A disk of the backend.
struct Member {
    number: u64,
    /// `None` is a group of its own.
    group: Option<String>,
    limits: IoLimits,
    /// The limits in force, of the whole group.
    throttle: Option<Arc<Throttle>>,
    /// Has the disk look at what is in force.
    wake: Box<dyn Fn() + Send>,
}

impl Member {
    fn is_of(&self, group: &str) -> bool {
        self.group.as_deref() == Some(group)
    }
}

#[derive(Default)]
struct Members {
    members: Vec<Member>,
    last: u64,
}

/// All disks of a backend and their groups. Clones share them.
#[derive(Clone, Default)]
pub struct ThrottleGroups(Arc<Mutex<Members>>);

/// A disk's place in its group; dropping it leaves the group.
pub struct Membership {
    groups: ThrottleGroups,
    number: u64,
}

impl ThrottleGroups {
    /// Adds a disk without limits. `wake` is called when the limits of its group may have changed by another disk.
    pub fn join(&self, wake: Box<dyn Fn() + Send>) -> Membership {
        let mut all = self.lock();
        all.last += 1;
        let number = all.last;
        all.members.push(Member { number, group: None, limits: IoLimits::default(), throttle: None, wake });
        Membership { groups: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// Sets the disk's own limits, and its group.
    pub fn set(&self, group: Option<&str>, limits: IoLimits) {
        let mut all = self.groups.lock();
        let Some(member) = all.members.iter_mut().find(|member| member.number == self.number) else { return };
        member.limits = limits;
        if member.group.as_deref() == group {
            return;
        }
        member.throttle = None;
        let left = std::mem::replace(&mut member.group, group.map(str::to_owned));
        left.iter().for_each(|left| all.wake(left, self.number));
    }

    /// The limits in force from `now` on; `None` if there are none.
    pub fn throttle(&self, now: Instant) -> Option<Arc<Throttle>> {
        self.groups.lock().settle(self.number, now)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut all = self.groups.lock();
        let Some(at) = all.members.iter().position(|member| member.number == self.number) else { return };
        if let Some(left) = all.members.swap_remove(at).group {
            all.wake(&left, self.number);
        }
    }
}

impl Members {
    /// Wakes the disks of a group, but the one of this number.
    fn wake(&self, group: &str, except: u64) {
        let others = self.members.iter().filter(|member| member.number != except && member.is_of(group));
        others.for_each(|member| (member.wake)());
    }

    /// Puts the limits of the group of disk `number` in force, and wakes its other disks if they have changed.
    fn settle(&mut self, number: u64, now: Instant) -> Option<Arc<Throttle>> {
        let group = self.members.iter().find(|member| member.number == number)?.group.clone();
        let of_group = |member: &&mut Member| match &group {
            Some(group) => member.is_of(group),
            None => member.number == number,
        };
        let members: Vec<_> = self.members.iter_mut().filter(of_group).collect();
        let limits = members.iter().fold(IoLimits::default(), |all, member| all.strictest(member.limits));
        let throttle = in_force(&members, limits, now);
        for member in members {
            let old = member.throttle.as_ref().map(Arc::as_ptr);
            if old == throttle.as_ref().map(Arc::as_ptr) {
                continue;
            }
            member.throttle.clone_from(&throttle);
            if member.number != number {
                (member.wake)();
            }
        }
        throttle
    }
}

/// What these limits of a group's disks are shared by: what is there already, if it has them.
fn in_force(members: &[&mut Member], limits: IoLimits, now: Instant) -> Option<Arc<Throttle>> {
    if limits.is_none() {
        return None;
    }
    let known: Vec<_> = members.iter().filter_map(|member| member.throttle.as_ref()).collect();
    // Limits that take the place of others begin with nothing saved up, so that changing them gains nothing.
    let credit = if known.is_empty() { Credit::Full } else { Credit::None };
    let same = known.into_iter().find(|throttle| *throttle.limits() == limits).cloned();
    Some(same.unwrap_or_else(|| Throttle::new(limits, credit, now)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::{Limit, LimitKind};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn iops(average: u64) -> IoLimits {
        IoLimits::default().with(LimitKind::IopsTotal, Limit { average, ..Limit::default() })
    }

    struct Disk {
        membership: Membership,
        woken: Arc<AtomicU32>,
    }

    impl Disk {
        fn join(groups: &ThrottleGroups) -> Disk {
            let woken = Arc::<AtomicU32>::default();
            let wake = woken.clone();
            let membership = groups.join(Box::new(move || wake.store(1, Ordering::Relaxed)));
            Disk { membership, woken }
        }

        fn set(&self, group: Option<&str>, limits: IoLimits) -> Option<Arc<Throttle>> {
            self.membership.set(group, limits);
            self.throttle()
        }

        fn throttle(&self) -> Option<Arc<Throttle>> {
            self.membership.throttle(Instant::now())
        }

        fn average(&self) -> Option<u64> {
            self.throttle().map(|throttle| throttle.limits().of(LimitKind::IopsTotal).average)
        }

        fn woken(&self) -> bool {
            self.woken.swap(0, Ordering::Relaxed) > 0
        }
    }

    #[test]
    fn disks_of_a_group_share_the_strictest_of_their_limits_and_others_share_nothing() {
        let groups = ThrottleGroups::default();
        let [one, two, alone] = [(); 3].map(|()| Disk::join(&groups));
        assert!(one.throttle().is_none());
        let first = one.set(Some("gold"), iops(100)).unwrap();
        assert_eq!(alone.set(None, iops(7)).map(|throttle| *throttle.limits()), Some(iops(7)));
        // One that names no limits has those of the group, and changes none.
        assert!(Arc::ptr_eq(&two.set(Some("gold"), IoLimits::default()).unwrap(), &first));
        assert!(!one.woken());
        two.set(Some("gold"), iops(40));
        assert!(one.woken() && !two.woken() && !alone.woken());
        assert_eq!((one.average(), two.average()), (Some(40), Some(40)));
        assert!(Arc::ptr_eq(&one.throttle().unwrap(), &two.throttle().unwrap()));
        two.set(Some("gold"), iops(200));
        assert_eq!((one.average(), two.average(), alone.average()), (Some(100), Some(100), Some(7)));
    }

    #[test]
    fn group_whose_strictest_disk_leaves_has_the_limits_of_the_others() {
        let groups = ThrottleGroups::default();
        let [one, two, three] = [(100), (50), (20)].map(|average| {
            let disk = Disk::join(&groups);
            disk.set(Some("g"), iops(average));
            disk
        });
        assert_eq!((one.average(), one.woken()), (Some(20), true));
        drop(three);
        assert!(one.woken());
        assert_eq!(one.average(), Some(50));
        assert_eq!(two.set(None, IoLimits::default()).map(|_| ()), None);
        assert!(one.woken());
        assert_eq!(one.average(), Some(100));
    }

    #[test]
    fn limits_that_do_not_change_keep_their_debt() {
        let groups = ThrottleGroups::default();
        let disk = Disk::join(&groups);
        let throttle = disk.set(None, iops(100)).unwrap();
        assert!(Arc::ptr_eq(&disk.set(None, iops(100)).unwrap(), &throttle));
        assert!(!Arc::ptr_eq(&disk.set(None, iops(101)).unwrap(), &throttle));
        assert!(disk.set(None, IoLimits::default()).is_none());
    }
}
