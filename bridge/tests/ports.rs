//! Tests of the worker's calls to its ports, and of the effects of a port's error.

mod common;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bridge::{Batch, Bridge, Caps, Config, Frame, Frames, Interest, Pin, PinOwner, Port, Stats};
use common::{pair, send, until};
use nix::sys::eventfd::EventFd;

fn frame() -> Frame {
    Frame::from_slice(&[&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0; 48]].concat())
}

/// A port made of closures.
struct FnPort<R, S, F> {
    recv: R,
    send: S,
    flush: F,
    stats: Arc<Stats>,
    notifier: EventFd,
}

impl<R, S, F> FnPort<R, S, F>
where
    R: FnMut(&mut Batch) -> io::Result<()> + Send + 'static,
    S: FnMut(Frames<'_>) -> io::Result<usize> + Send + 'static,
    F: FnMut() -> io::Result<()> + Send + 'static,
{
    fn boxed(recv: R, send: S, flush: F) -> Box<dyn Port> {
        Box::new(FnPort { recv, send, flush, stats: Arc::default(), notifier: EventFd::new().unwrap() })
    }
}

impl<R, S, F> Port for FnPort<R, S, F>
where
    R: FnMut(&mut Batch) -> io::Result<()> + Send,
    S: FnMut(Frames<'_>) -> io::Result<usize> + Send,
    F: FnMut() -> io::Result<()> + Send,
{
    fn caps(&self) -> Caps {
        Caps::plain(1500)
    }
    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        (self.recv)(into)
    }
    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        (self.send)(frames)
    }
    fn flush(&mut self) -> io::Result<()> {
        (self.flush)()
    }
    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        Ok(false)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}

#[test]
fn port_whose_send_or_flush_fails_is_removed_alone() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let (mut end, port) = pair(Caps::plain(1500));
    bridge.attach("whole", Box::new(port)).unwrap();
    bridge
        .attach("send", FnPort::boxed(|_| Ok(()), |_: Frames<'_>| Err(io::Error::other("broken")), || Ok(())))
        .unwrap();
    assert_eq!(bridge.ports().unwrap().len(), 2);
    send(&mut end, &[frame()]);
    until("removal", || (bridge.ports().unwrap().len() == 1).then_some(()));
    bridge
        .attach(
            "flush",
            FnPort::boxed(
                |_| Ok(()),
                |frames: Frames<'_>| Ok(frames.len()),
                || Err(io::Error::other("broken")),
            ),
        )
        .unwrap();
    until("removal", || (bridge.ports().unwrap().len() == 1).then_some(()));
    assert_eq!(bridge.ports().unwrap()[0].name, "whole");
}

#[derive(Default)]
struct Page {
    held: AtomicU32,
}

impl PinOwner for Page {
    fn hold(&self, _: u32) {
        self.held.fetch_add(1, SeqCst);
    }
    fn release(&self, _: u32) {
        self.held.fetch_sub(1, SeqCst);
    }
}

/// One port's flush releases requests of another, which must be flushed once more before the worker sleeps: else its
/// peer would wait for the responses until the next tick.
#[test]
fn requests_released_by_a_flush_are_responded_to_before_sleep() {
    let bridge = Bridge::start(Config { busy_poll: Duration::ZERO, ..Config::default() }).unwrap();
    let page = Arc::new(Page::default());
    let sent = Arc::new(AtomicBool::default());
    let responded = Arc::new(AtomicBool::default());
    let late = Arc::new(AtomicBool::default());
    let source = FnPort::boxed(
        {
            let page = page.clone();
            let sent = sent.clone();
            let responded = responded.clone();
            let late = late.clone();
            move |into| {
                if sent.swap(true, SeqCst) {
                    late.fetch_or(!responded.load(SeqCst), SeqCst);
                } else if let Some(slot) = into.slot() {
                    slot.copy_from(&frame());
                    page.hold(0);
                    slot.pin(Pin::adopt(page.clone(), 0));
                    slot.push(common::fragment(b"payload")).unwrap();
                }
                Ok(())
            }
        },
        |frames: Frames<'_>| Ok(frames.len()),
        {
            let page = page.clone();
            let sent = sent.clone();
            let responded = responded.clone();
            move || {
                responded.fetch_or(sent.load(SeqCst) && page.held.load(SeqCst) == 0, SeqCst);
                Ok(())
            }
        },
    );
    let queue = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = FnPort::boxed(
        |_| Ok(()),
        {
            let queue = queue.clone();
            move |frames: Frames<'_>| {
                queue.lock().unwrap().extend(frames.iter().cloned());
                Ok(frames.len())
            }
        },
        move || {
            queue.lock().unwrap().clear();
            Ok(())
        },
    );
    let (_end, first) = pair(Caps::plain(1500));
    bridge.attach("first", Box::new(first)).unwrap();
    bridge.attach("sink", sink).unwrap();
    // The source is flushed before the sink.
    bridge.detach("first").unwrap();
    bridge.attach("source", source).unwrap();
    until("the response", || responded.load(SeqCst).then_some(()));
    assert!(!late.load(SeqCst), "the source was called again before it could respond");
}

/// A port whose peer sends a frame, and no event, each time that the port has been armed.
struct Silent {
    has_frame: bool,
    stats: Arc<Stats>,
    notifier: EventFd,
}

impl Port for Silent {
    fn caps(&self) -> Caps {
        Caps::plain(1500)
    }
    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        if std::mem::take(&mut self.has_frame)
            && let Some(slot) = into.slot()
        {
            slot.copy_from(&frame());
        }
        Ok(())
    }
    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        Ok(frames.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        self.has_frame = true;
        Ok(false)
    }
    fn is_ready(&mut self, needs: Interest) -> io::Result<bool> {
        Ok(needs.input && self.has_frame)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}

#[test]
fn work_without_an_event_is_found_at_the_tick_and_counted() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let (mut end, port) = pair(Caps::plain(1500));
    bridge.attach("pair", Box::new(port)).unwrap();
    let silent = Silent { has_frame: false, stats: Arc::default(), notifier: EventFd::new().unwrap() };
    bridge.attach("silent", Box::new(silent)).unwrap();
    common::take(&mut end, 2);
    let ports = bridge.ports().unwrap();
    assert_eq!(ports[0].counters.missed_wakeups, 0);
    assert!((2..=3).contains(&ports[1].counters.missed_wakeups), "{ports:?}");
}

/// A port that is told of each of its frames, and counts how often its events are taken.
struct Told {
    frames: u32,
    taken: Arc<AtomicU32>,
    stats: Arc<Stats>,
    notifier: Arc<EventFd>,
}

impl Port for Told {
    fn caps(&self) -> Caps {
        Caps::plain(1500)
    }
    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        if std::mem::take(&mut self.frames) > 0
            && let Some(slot) = into.slot()
        {
            slot.copy_from(&frame());
        }
        Ok(())
    }
    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        Ok(frames.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        Ok(false)
    }
    fn take_events(&mut self) -> io::Result<()> {
        self.taken.fetch_add(1, SeqCst);
        self.notifier.read()?;
        self.frames += 1;
        Ok(())
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}

#[test]
fn events_are_taken_once_each_and_only_where_the_descriptor_is_readable() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let (mut end, port) = pair(Caps::plain(1500));
    bridge.attach("pair", Box::new(port)).unwrap();
    let taken = Arc::new(AtomicU32::default());
    // A read without an event would block for ever.
    let notifier = Arc::new(EventFd::new().unwrap());
    let told = Told { frames: 0, taken: taken.clone(), stats: Arc::default(), notifier: notifier.clone() };
    bridge.attach("told", Box::new(told)).unwrap();
    for count in 1..=20 {
        notifier.write(1).unwrap();
        common::take(&mut end, 1);
        assert_eq!(taken.load(SeqCst), count);
    }
}
