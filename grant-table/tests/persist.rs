//! Persistent grants on the local hypervisor.

use grant_table::persist::Counts;
use grant_table::{Access, GrantTable, PersistentCache, Shared};
use hypervisor::local::Sandbox;
use proptest::prelude::*;
use ring_abi::{DomId, GrantRef};

const GUEST: DomId = DomId(1);

fn setup(max: usize, pages: usize) -> (Sandbox, Shared, PersistentCache) {
    let sandbox = Sandbox::new().unwrap();
    let guest = sandbox.join(GUEST).unwrap();
    let shared = guest.share(DomId::DOM0, pages, Access::ReadWrite).unwrap();
    let cache = PersistentCache::new(sandbox.join(DomId::DOM0).unwrap(), GUEST, max);
    (sandbox, shared, cache)
}

#[test]
fn full_cache_evicts_the_least_recently_used_page() {
    let (_sandbox, shared, mut cache) = setup(2, 3);
    let [a, b, c] = [0, 1, 2].map(|n| shared.refs()[n]);
    for gref in [a, b, a, c, a] {
        cache.get(gref).unwrap();
    }
    assert_eq!(cache.counts(), Counts { hits: 2, misses: 3, uncached: 0, evicted: 1 });
    cache.get(b).unwrap();
    assert_eq!(cache.counts().misses, 4, "b was evicted for c");
}

#[test]
fn page_in_use_stays_mapped_after_eviction_and_drop_of_the_cache() {
    let (_sandbox, shared, mut cache) = setup(2, 3);
    let held: Vec<_> = shared.refs().iter().map(|gref| cache.get(*gref).unwrap()).collect();
    assert_eq!((cache.len(), cache.counts().uncached), (2, 1));
    drop(cache);
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
fn get_of_an_invalid_reference_caches_nothing() {
    let (_sandbox, shared, mut cache) = setup(2, 1);
    assert!(cache.get(GrantRef(99_999)).is_err());
    assert!(cache.is_empty());
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
        let (_sandbox, shared, mut cache) = setup(max, 8);
        let mut held = Vec::new();
        for (action, page, pick) in steps {
            match action {
                0..=6 => {
                    // Two of ten references are not granted.
                    let gref = shared.refs().get(page).copied().unwrap_or(GrantRef(9_999));
                    held.extend(cache.get(gref));
                }
                7..=9 if !held.is_empty() => drop(held.swap_remove(pick % held.len())),
                _ => {}
            }
            prop_assert!(cache.len() <= max);
            let counts = cache.counts();
            prop_assert!(counts.misses >= counts.evicted + cache.len() as u64);
        }
        drop((held, cache));
        prop_assert!(shared.end().is_ok(), "a page is still mapped");
    }
}
