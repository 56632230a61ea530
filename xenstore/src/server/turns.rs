//! Whose request is executed next: each domain's turn is as much work as any other's, however many connections it has, and
//! dom0's comes between any two of guests.
//!
//! The domains' turns are a deficit round robin: a turn lasts until the domain has used up its share, and what a request cost
//! beyond that is missing from the next turns. Among the connections of one domain a request of each is executed in turn.

use std::collections::{BTreeMap, VecDeque};

use super::ConnId;
use ring_abi::DomId;

/// Work in a turn. A request is some units, and each event that it fires is one.
const SHARE: i64 = 128;

/// One domain's connections with a whole request, and the work that it may still have done.
#[derive(Default)]
struct Domain {
    ready: VecDeque<ConnId>,
    left: i64,
    /// It is among the guests whose turns come.
    queued: bool,
}

/// The connections with a whole request that may be executed.
#[derive(Default)]
pub(super) struct Turns {
    domains: BTreeMap<DomId, Domain>,
    /// The guests among them, in order of their turns; the first one's turn may have begun.
    guests: VecDeque<DomId>,
    /// Ready connections of all domains.
    count: usize,
}

impl Turns {
    /// Adds a connection that has a whole request. The caller adds none twice.
    pub(super) fn add(&mut self, domid: DomId, conn: ConnId) {
        let domain = self.domains.entry(domid).or_default();
        if domid != DomId::DOM0 && !std::mem::replace(&mut domain.queued, true) {
            self.guests.push_back(domid);
        }
        domain.ready.push_back(conn);
        self.count += 1;
    }

    /// Whether no connection is ready.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the connection whose request is executed next.
    pub(super) fn next(&mut self) -> Option<ConnId> {
        while self.count > 0 {
            let first = self.guests.front().copied();
            let own = first.is_none() || self.domains.get(&DomId::DOM0).is_some_and(|dom0| dom0.left > 0);
            let of_dom0 = self.domains.get_mut(&DomId::DOM0).filter(|_| own);
            let guest = |domains: &mut BTreeMap<DomId, Domain>| {
                domains.get_mut(&first?).filter(|guest| guest.left > 0)?.ready.pop_front()
            };
            match of_dom0.and_then(|dom0| dom0.ready.pop_front()).or_else(|| guest(&mut self.domains)) {
                Some(conn) => {
                    self.count -= 1;
                    return Some(conn);
                }
                None => self.end_turn(),
            }
        }
        None
    }

    /// Takes what a request cost from its domain's share.
    pub(super) fn charge(&mut self, domid: DomId, work: usize) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.left = domain.left.saturating_sub_unsigned(work as u64);
        }
    }

    /// Forgets a domain that is released.
    pub(super) fn remove(&mut self, domid: DomId) {
        self.count -= self.domains.remove(&domid).map_or(0, |domain| domain.ready.len());
        self.guests.retain(|other| *other != domid);
    }

    /// Ends the first guest's turn: it has used up its share, or has no request.
    fn end_turn(&mut self) {
        let Some(domid) = self.guests.pop_front() else { return };
        if let Some(guest) = self.domains.get_mut(&domid) {
            guest.left = SHARE.min(guest.left.saturating_add(SHARE));
            guest.queued = !guest.ready.is_empty();
            if guest.queued {
                self.guests.push_back(domid);
            }
        }
        self.domains.entry(DomId::DOM0).or_default().left = SHARE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Executes `count` requests of a cost by domain; connections stay ready. The domains in order.
    fn execute(turns: &mut Turns, count: usize, cost: impl Fn(u64) -> usize) -> Vec<u64> {
        let mut order = Vec::new();
        for _ in 0..count {
            let conn = turns.next().unwrap();
            let domid = conn.0 / 100;
            turns.charge(DomId(domid as u16), cost(domid));
            turns.add(DomId(domid as u16), conn);
            order.push(domid);
        }
        order
    }

    #[test]
    fn domain_with_many_connections_gets_no_more_work_done_than_one_with_a_single_one() {
        let mut turns = Turns::default();
        (100..164).for_each(|conn| turns.add(DomId(1), ConnId(conn)));
        turns.add(DomId(2), ConnId(200));
        let order = execute(&mut turns, 4000, |_| 8);
        let ones = order.iter().filter(|domid| **domid == 1).count();
        assert!((1900..=2100).contains(&ones), "{ones} of 4000");
    }

    #[test]
    fn expensive_requests_are_paid_by_their_domain() {
        let mut turns = Turns::default();
        turns.add(DomId(1), ConnId(100));
        turns.add(DomId(2), ConnId(200));
        let order = execute(&mut turns, 4000, |domid| if domid == 1 { 1280 } else { 8 });
        let ones = order.iter().filter(|domid| **domid == 1).count();
        assert!((20..=30).contains(&ones), "{ones} of 4000");
    }

    #[test]
    fn dom0_waits_for_one_turn_of_a_guest_at_most() {
        let mut turns = Turns::default();
        for domid in 1..=50 {
            (0..64).for_each(|conn| turns.add(DomId(domid), ConnId(u64::from(domid) * 100 + conn)));
        }
        execute(&mut turns, 777, |_| 8);
        turns.add(DomId::DOM0, ConnId(0));
        let order = execute(&mut turns, SHARE as usize / 8 + 1, |_| 8);
        assert!(order.contains(&0), "{order:?}");
        // Nor do guests wait for ever while dom0 asks without end.
        let order = execute(&mut turns, 2000, |_| 8);
        assert!(order.iter().filter(|domid| **domid != 0).count() > 500);
    }

    #[test]
    fn released_domain_and_an_idle_one_are_no_more_next() {
        let mut turns = Turns::default();
        turns.add(DomId(1), ConnId(100));
        turns.add(DomId(2), ConnId(200));
        turns.remove(DomId(1));
        assert_eq!(turns.next(), Some(ConnId(200)));
        assert_eq!(turns.next(), None);
        assert!(turns.is_empty());
    }
}
