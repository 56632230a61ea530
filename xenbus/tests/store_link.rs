//! A frontend's connection to the store, beside a backend that writes without end.

use event_loop::{Connector, EventSet, Stream};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use xenbus::{LinkEvent, StoreLink};
use xenstore::Nodes;
use xenstore::server::{Config, Store, StoreHandle};

const BOUND: Duration = Duration::from_secs(60);

/// Connects to a store as dom0.
struct Connection(StoreHandle);

impl Connector for Connection {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        self.0.connect(theirs)?;
        Ok(Box::new(ours))
    }
}

#[test]
fn keys_that_are_rewritten_without_end_are_a_bounded_number_of_changes() {
    let store = Store::spawn(Config::default()).unwrap();
    let set = EventSet::new().unwrap();
    let mut link = StoreLink::connect(Arc::new(Connection(store.handle())), &set, 0).unwrap();
    link.client().unwrap().watch("/backend", "back").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let mut backend = store.client().unwrap();
    let storm = std::thread::spawn(move || {
        for n in 0.. {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            backend.write(&format!("/backend/{}", n % 700), "").unwrap();
        }
    });
    let start = Instant::now();
    let mut changes = 0;
    // As a device's thread does, which has its ring to look at besides.
    for _ in 0..100 {
        set.wait(Some(BOUND)).unwrap();
        loop {
            assert!(start.elapsed() < BOUND, "{changes} changes without an end");
            match link.poll(&set) {
                LinkEvent::None => break,
                _ => changes += 1,
            }
            let _ = link.client().unwrap().read_opt("/backend/1").unwrap();
        }
    }
    // Fifty at once, and one in twenty milliseconds.
    let most = 52 + start.elapsed().as_millis() / 20;
    assert!(changes <= most, "{changes} changes, expected at most {most}");
    stop.store(true, Ordering::Relaxed);
    storm.join().unwrap();
    // The last one is told.
    store.client().unwrap().write("/backend/last", "").unwrap();
    let mut seen = false;
    while !seen {
        assert!(set.wait(Some(BOUND)).is_ok() && start.elapsed() < 2 * BOUND);
        while link.poll(&set) == LinkEvent::Changed {
            seen = link.client().unwrap().exists("/backend/last").unwrap();
        }
    }
}
