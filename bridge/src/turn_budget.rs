//! A port's share of the bridge's time: deficit round robin (Shreedhar and Varghese, 1995) over what its frames cost.
//!
//! Each turn adds a quantum. Frames are served until their cost has used it up; what they cost beyond it is owed, and the port
//! is not received from again until as many turns of the others have paid for it. Costs are in bytes whose copying takes as long,
//! so that a frame for a thousand ports, or of a thousand segments, counts as the work that it is.

/// What a port may cost in a turn: 16 frames of the longest kind, which is what a transmit ring of one page holds. Their
/// copying takes about a tenth of a millisecond.
const QUANTUM: i64 = 1 << 20;

/// What a port may still cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct TurnBudget {
    credit: i64,
}

impl TurnBudget {
    /// Begins a turn; `None` if the port still owes for earlier ones.
    #[inline]
    pub(crate) fn begin(&mut self) -> Option<u64> {
        self.credit = (self.credit + QUANTUM).min(QUANTUM);
        u64::try_from(self.credit).ok().filter(|credit| *credit > 0)
    }

    /// Takes what frames have cost.
    #[inline]
    pub(crate) fn spend(&mut self, cost: u64) {
        self.credit = self.credit.saturating_sub(i64::try_from(cost).unwrap_or(i64::MAX));
    }

    /// Forgives what the port owes: nobody else had anything to do.
    pub(crate) fn forgive(&mut self) {
        self.credit = self.credit.max(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_that_costs_more_than_its_quantum_waits_for_as_many_turns() {
        let mut budget = TurnBudget::default();
        assert_eq!(budget.begin(), Some(QUANTUM as u64));
        budget.spend(4 * QUANTUM as u64);
        assert_eq!([budget.begin(), budget.begin(), budget.begin()], [None; 3]);
        assert_eq!(budget.begin(), Some(QUANTUM as u64));
        budget.spend(u64::MAX);
        assert_eq!(budget.begin(), None);
        budget.forgive();
        assert_eq!(budget.begin(), Some(QUANTUM as u64));
    }

    #[test]
    fn unused_turns_are_not_saved_up() {
        let mut budget = TurnBudget::default();
        for _ in 0..100 {
            assert_eq!(budget.begin(), Some(QUANTUM as u64));
        }
        budget.spend(1);
        assert_eq!(budget.begin(), Some(QUANTUM as u64));
    }
}
