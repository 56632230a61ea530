//! What a connection, or a domain with all its connections, uses of what quotas limit.

/// What is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) watches: usize,
    pub(super) transactions: usize,
    /// Bytes held in watches and open transactions.
    pub(super) held: usize,
    /// Unsent watch events.
    pub(super) events: usize,
    /// Unsent bytes.
    pub(super) bytes: usize,
}

impl Usage {
    /// Counts that one of the connections uses `now` what was `before`.
    pub(super) fn change(&mut self, before: &Usage, now: &Usage) {
        let change = |all: &mut usize, before: usize, now: usize| *all = (*all + now).saturating_sub(before);
        change(&mut self.watches, before.watches, now.watches);
        change(&mut self.transactions, before.transactions, now.transactions);
        change(&mut self.held, before.held, now.held);
        change(&mut self.events, before.events, now.events);
        change(&mut self.bytes, before.bytes, now.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_two_connections_add_up_and_return_to_nothing() {
        let mut all = Usage::default();
        let none = Usage::default();
        let one = Usage { watches: 3, transactions: 1, held: 100, events: 2, bytes: 60 };
        let two = Usage { watches: 1, ..none };
        all.change(&none, &one);
        all.change(&none, &two);
        assert_eq!((all.watches, all.transactions, all.held, all.events, all.bytes), (4, 1, 100, 2, 60));
        all.change(&one, &none);
        all.change(&two, &none);
        assert_eq!(all, none);
    }
}
