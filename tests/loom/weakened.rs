//! Loom's atomics, of which the ordering of one access can be left out, and what a model does with that: each ordering of the code that it
//! explores is needed, or one of those that it names. Models include this file as a module, and their code's atomics are its ones.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Mutex;
pub(crate) use std::sync::atomic::Ordering;

/// An access in the source: its file and line.
type Site = &'static Location<'static>;

/// Those that have another ordering than Relaxed.
static SEEN: Mutex<BTreeSet<Site>> = Mutex::new(BTreeSet::new());
static WEAKENED: Mutex<Option<Site>> = Mutex::new(None);

fn weaken(site: Option<Site>) {
    *WEAKENED.lock().expect("no panic") = site;
}

#[track_caller]
fn of(order: Ordering) -> Ordering {
    let site = Location::caller();
    if order != Ordering::Relaxed {
        SEEN.lock().expect("no panic").insert(site);
    }
    if *WEAKENED.lock().expect("no panic") == Some(site) { Ordering::Relaxed } else { order }
}

/// Methods that change a value and return the one before.
macro_rules! changing {
    ($value:ty, $($method:ident)*) => {
        $(
            #[track_caller]
            pub(crate) fn $method(&self, value: $value, order: Ordering) -> $value {
                self.0.$method(value, of(order))
            }
        )*
    };
}

/// Methods that change a value where it is the expected one.
macro_rules! exchanging {
    ($value:ty, $($method:ident)*) => {
        $(
            #[track_caller]
            pub(crate) fn $method(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.0.$method(current, new, of(success), failure)
            }
        )*
    };
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[derive(Debug, Default)]
        pub(crate) struct $name(loom::sync::atomic::$name);

        #[allow(dead_code)] // Each model's code needs some of them.
        impl $name {
            pub(crate) fn new(value: $value) -> $name {
                $name(loom::sync::atomic::$name::new(value))
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.0.load(of(order))
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.0.store(value, of(order));
            }

            changing!($value, fetch_add fetch_sub fetch_or fetch_and);
            exchanging!($value, compare_exchange compare_exchange_weak);
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

/// Explores a run with at most three preemptions, or fewer where there is more to explore.
fn check(run: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

/// Explores the runs, and then once more for each access without its ordering, which must fail. `source` gives the text of a source file
/// by its path.
///
/// Returns the lines of the accesses that fail no run, in the order of the source.
pub(crate) fn explore(what: &str, runs: &[fn()], source: fn(&str) -> &'static str) -> Vec<&'static str> {
    runs.iter().copied().for_each(check);
    let sites = SEEN.lock().expect("no panic").clone();
    println!("{what}, by {} ordered accesses", sites.len());
    // What fails below is expected to.
    std::panic::set_hook(Box::new(|_| ()));
    let mut not_needed = Vec::new();
    for site in sites {
        weaken(Some(site));
        let is_needed = runs.iter().any(|run| catch_unwind(AssertUnwindSafe(|| check(*run))).is_err());
        weaken(None);
        let needed = if is_needed { "needed" } else { "not needed" };
        let line =
            source(site.file()).lines().nth(site.line() as usize - 1).expect("a line of the file").trim();
        println!("{}:{}: {needed}: {line}", site.file(), site.line());
        if !is_needed {
            not_needed.push(line);
        }
    }
    drop(std::panic::take_hook());
    not_needed
}
