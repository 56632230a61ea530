//! Persistent grants on the local hypervisor.

use grant_table::persist::{Counts, LINUX_MAX, PageBudget, PersistentCache};
use grant_table::{Access, GrantTable, Shared};
use hypervisor::local::Sandbox;
use proptest::prelude::*;
use ring_abi::{DomId, GrantRef};

const GUEST: DomId = DomId(1);

fn setup(max: usize, pages: usize) -> (Sandbox, Shared, PersistentCache, PageBudget) {
    let sandbox = Sandbox::new().unwrap();
    let guest = sandbox.join(GUEST).unwrap();
    let shared = guest.share(DomId::DOM0, pages, Access::ReadWrite).unwrap();
    let budget = PageBudget::new(1000);
    let cache = PersistentCache::new(sandbox.join(DomId::DOM0).unwrap(), GUEST, max, budget.clone());
    (sandbox, shared, cache, budget)
}

#[test]
fn full_cache_refuses_pages_and_now_and_then_evicts_the_least_recently_used() {
    let (_sandbox, shared, mut cache, budget) = setup(2, 3);
    let [a, b, c] = [0, 1, 2].map(|n| shared.refs()[n]);
    for gref in [a, b, a] {
        assert!(cache.get(gref).unwrap().is_some());
    }
    for _ in 0..31 {
        assert!(cache.get(c).unwrap().is_none());
    }
    assert!(cache.get(c).unwrap().is_some());
    assert_eq!(cache.counts(), Counts { hits: 1, misses: 3, refused: 31, evicted: 1 });
    assert!(cache.get(a).unwrap().is_some() && cache.get(b).unwrap().is_none(), "b was evicted for c");
    assert_eq!(budget.used(), 2);
}

#[test]
fn page_in_use_is_not_evicted_and_stays_mapped_after_drop_of_the_cache() {
    let (_sandbox, shared, mut cache, budget) = setup(2, 3);
    let held: Vec<_> = shared.refs()[..2].iter().map(|gref| cache.get(*gref).unwrap().unwrap()).collect();
    for _ in 0..100 {
        assert!(cache.get(shared.refs()[2]).unwrap().is_none());
    }
    drop(cache);
    assert_eq!(budget.used(), 0);
    for (n, page) in held.iter().enumerate() {
        shared.slice(n * 4096, 1).unwrap().copy_from(&[n as u8 + 1]);
        let mut byte = [0u8];
        page.slice(0, 0, 1).unwrap().copy_to(&mut byte);
        assert_eq!(byte, [n as u8 + 1]);
    }
    drop(held);
    shared.end().expect("all is unmapped");
}

#[test]
fn pages_that_no_request_uses_are_given_back_one_to_two_intervals_after_their_last_use() {
    let (_sandbox, shared, mut cache, budget) = setup(4, 3);
    let [often, once, held] = [0, 1, 2].map(|n| shared.refs()[n]);
    cache.get(once).unwrap();
    let in_flight = cache.get(held).unwrap();
    for _ in 0..3 {
        cache.get(often).unwrap();
        cache.give_back_unused();
        cache.get(often).unwrap();
    }
    assert_eq!((cache.len(), cache.counts().evicted), (2, 1), "that of the request in flight stays");
    drop(in_flight);
    cache.give_back_unused();
    assert_eq!(cache.len(), 1);
    cache.give_back_unused();
    assert_eq!((cache.len(), budget.used()), (0, 0));
    shared.end().expect("all is unmapped");
}

/// On Linux a process has at most `vm.max_map_count` mappings, 65,530 unless it is set: 62 rings of 1,056 pages are as many.
#[test]
fn sixty_two_rings_keep_within_the_budget_and_come_to_have_equal_parts_of_it() {
    const RINGS: u16 = 62;
    const BUDGET: usize = 20_000;
    let sandbox = Sandbox::new().unwrap();
    let dom0 = sandbox.join(DomId::DOM0).unwrap();
    let budget = PageBudget::new(BUDGET);
    let use_all = |shared: &Shared, cache: &mut PersistentCache| {
        shared.refs().iter().for_each(|gref| drop(cache.get(*gref).unwrap()));
        assert!(!cache.is_empty() && budget.used() <= BUDGET);
    };
    let mut rings = Vec::new();
    for n in 1..=RINGS {
        let shared = sandbox.join(DomId(n)).unwrap().share(DomId::DOM0, 1056, Access::ReadWrite).unwrap();
        let mut cache = PersistentCache::new(dom0.clone(), DomId(n), LINUX_MAX, budget.clone());
        // The earlier ones are idle, and keep what they have.
        use_all(&shared, &mut cache);
        rings.push((shared, cache));
    }
    assert_eq!(budget.used(), rings.iter().map(|(_, cache)| cache.len()).sum::<usize>());
    for _ in 0..8 {
        rings.iter_mut().for_each(|(shared, cache)| use_all(shared, cache));
    }
    let lens = rings.iter().map(|(_, cache)| cache.len());
    let (min, max) = (lens.clone().min().unwrap(), lens.max().unwrap());
    assert!(min * 3 >= max, "{min} to {max}");
    drop(rings);
    assert_eq!(budget.used(), 0);
}

#[test]
fn get_of_an_invalid_reference_caches_nothing() {
    let (_sandbox, shared, mut cache, budget) = setup(2, 1);
    assert!(cache.get(GrantRef(99_999)).is_err());
    assert!(cache.is_empty() && budget.used() == 0);
    cache.get(shared.refs()[0]).unwrap();
    drop(cache);
    shared.end().expect("all is unmapped");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// XSA-371.
    #[test]
    fn cache_in_any_use_keeps_its_bound_and_unmaps_every_page(
        max in 0usize..6,
        steps in proptest::collection::vec((0usize..12, 0usize..10, any::<usize>()), 1..120),
    ) {
        let (_sandbox, shared, mut cache, budget) = setup(max, 8);
        let mut held = Vec::new();
        for (action, page, pick) in steps {
            match action {
                0..=6 => {
                    // Two of ten references are not granted.
                    let gref = shared.refs().get(page).copied().unwrap_or(GrantRef(9_999));
                    held.extend(cache.get(gref).ok().flatten());
                }
                7..=9 if !held.is_empty() => drop(held.swap_remove(pick % held.len())),
                _ => {}
            }
            prop_assert!(cache.len() <= max && budget.used() == cache.len());
            let counts = cache.counts();
            prop_assert!(counts.misses >= counts.evicted + cache.len() as u64);
        }
        drop((held, cache));
        prop_assert!(shared.end().is_ok(), "a page is still mapped");
    }
}
