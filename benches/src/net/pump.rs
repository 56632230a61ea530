//! Two guests on one thread, one of which sends as many frames as the bridge takes, and the other receives them. The thread
//! polls for a while when neither gets on, and then sleeps, as a guest's driver does.

use event_loop::{AdaptivePoll, Interest};
use netfront::{Meta, Nic, SendOutcome};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::time::{Duration, Instant};

/// Frames sent or received before anything is published.
const BURST: usize = 32;
/// Not counted at the start of a run.
pub(super) const WARM_UP: Duration = Duration::from_millis(100);
/// How long the thread polls before it sleeps, as the bridge does.
const BUSY_POLL: Duration = Duration::from_micros(20);
/// The longest sleep: a wake-up that is missed shows as a rate near zero.
const LONGEST_SLEEP_MS: u8 = 100;

/// What the sender is waited for by, and the receiver.
const NEEDS: [Interest; 2] = [Interest { input: false, room: true }, Interest::INPUT];

/// Sends what fits of a burst of frames without offloads; returns how many.
pub(super) fn send_burst(nic: &mut Nic, frame: &[u8]) -> usize {
    send_burst_as(nic, frame, &Meta::default())
}

/// Sends what fits of a burst of frames; returns how many.
fn send_burst_as(nic: &mut Nic, frame: &[u8], meta: &Meta) -> usize {
    let sent = (0..BURST).take_while(|_| nic.send_with_meta(frame, meta) == SendOutcome::Queued).count();
    nic.flush();
    sent
}

/// The two guests.
pub(super) struct Guests {
    /// The sender.
    pub(super) a: Nic,
    /// The receiver.
    pub(super) b: Nic,
    /// The frame that is sent.
    pub(super) bytes: Vec<u8>,
    /// Its offloads.
    pub(super) meta: Meta,
    /// Where frames are received.
    pub(super) into: Vec<u8>,
}

impl Guests {
    /// Frames a second that the receiver takes, in millions.
    ///
    /// # Errors
    /// An interface fails.
    pub(super) fn pump(&mut self, time: Duration) -> Result<f64, String> {
        let start = Instant::now();
        let mut counted: Option<(Instant, u64)> = None;
        let mut adaptive_poll = AdaptivePoll::default();
        loop {
            for _ in 0..64 {
                if !self.step() {
                    self.wait(&mut adaptive_poll)?;
                }
            }
            let frames = self.b.counters().rx_frames;
            match counted {
                None if start.elapsed() >= WARM_UP => counted = Some((Instant::now(), frames)),
                Some((since, first)) if since.elapsed() >= time => {
                    return Ok((frames - first) as f64 / since.elapsed().as_secs_f64() / 1e6);
                }
                _ => {}
            }
        }
    }

    /// Sends and receives what can be; `false` if nothing could.
    fn step(&mut self) -> bool {
        let sent = send_burst_as(&mut self.a, &self.bytes, &self.meta);
        let mut received = false;
        while self.b.recv(&mut self.into).is_some() {
            received = true;
        }
        self.b.flush();
        received || sent > 0
    }

    /// Polls until either guest gets on, or sleeps until it is told.
    fn wait(&mut self, adaptive_poll: &mut AdaptivePoll) -> Result<(), String> {
        if adaptive_poll.should_poll() {
            let start = Instant::now();
            let mut found = false;
            while !found && start.elapsed() < BUSY_POLL {
                found = self.step();
            }
            adaptive_poll.ended(found, start.elapsed());
            if found {
                return Ok(());
            }
        }
        let [room, input] = NEEDS;
        let ready = [self.a.arm(room), self.b.arm(input)];
        if ready.contains(&true) {
            adaptive_poll.hit();
            return Ok(());
        }
        let mut fds = [self.a.fd(), self.b.fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::from(LONGEST_SLEEP_MS))
            .map_err(|e| format!("waiting for two interfaces: {e}"))?;
        let told = fds.map(|fd| fd.any().unwrap_or(false));
        for (nic, _) in [&mut self.a, &mut self.b].into_iter().zip(told).filter(|(_, told)| *told) {
            nic.process_events().map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}
