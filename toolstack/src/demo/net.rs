//! The network workload of a guest of the demo: streams in a window, so that no full queue drops a frame, and pings;
//! the receiver compares every byte before it acknowledges.

use std::time::{Duration, Instant};

use netfront::{Nic, SendOutcome};

use super::disk::{histogram, percentiles};
use super::frame::{self, Frame, Kind, SHORTEST};
use super::pattern::Pattern;
use super::protocol::{Event, Latency, NetPlan, NetResult, Progress, Served, Stream};
use crate::error::{Error, Result, chain};

/// Bytes of a full frame.
const LARGE: usize = 1514;
/// Frames of a stream that may be unacknowledged.
const WINDOW: u64 = 128;
/// Frames that are acknowledged together.
const ACK_EVERY: u64 = 32;
/// How long no frame may be received from the peer.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one wait for the interface lasts; also the shortest time between two progress events.
const WAIT_INTERVAL: Duration = Duration::from_millis(50);

/// A network interface, and the buffers and pattern of the workload.
pub struct Link<'a> {
    nic: &'a mut Nic,
    pattern: Pattern,
    input: Vec<u8>,
    output: Vec<u8>,
    last_received: Instant,
}

/// A frame that was received.
struct Received {
    from: [u8; 6],
    kind: Kind,
    number: u64,
    len: usize,
    /// Whether its data is that of the pattern.
    is_right: bool,
}

impl<'a> Link<'a> {
    /// Creates a link over `nic` with the patterns of `seed`.
    pub fn new(nic: &'a mut Nic, seed: u64) -> Link<'a> {
        Link {
            nic,
            pattern: Pattern::new(seed),
            input: vec![0; 2048],
            output: vec![0; LARGE],
            last_received: Instant::now(),
        }
    }

    /// Queues a frame of `len` bytes; `false` if the ring has no slot.
    fn queue(&mut self, to: [u8; 6], kind: Kind, number: u64, len: usize) -> Result<bool> {
        let bytes = &mut self.output[..len];
        frame::write(bytes, to, self.nic.mac(), kind, number, &self.pattern);
        match self.nic.send(bytes) {
            SendOutcome::Queued => Ok(true),
            SendOutcome::Full => Ok(false),
            SendOutcome::Dropped => Err(Error::other("the interface went down")),
        }
    }

    /// Sends a short frame, and waits for a slot of the ring if necessary.
    fn send(&mut self, to: [u8; 6], kind: Kind, number: u64) -> Result<()> {
        while !self.queue(to, kind, number, SHORTEST)? {
            self.wait(true)?;
        }
        self.nic.flush();
        Ok(())
    }

    /// Waits for a frame, or with `for_slot` also for a slot of the ring.
    fn wait(&mut self, for_slot: bool) -> Result<()> {
        if self.last_received.elapsed() > PEER_TIMEOUT {
            let seconds = PEER_TIMEOUT.as_secs();
            return Err(Error::Other(format!("nothing was received from the peer for {seconds} s")));
        }
        self.nic.wait(for_slot, WAIT_INTERVAL).map_err(|e| Error::Other(chain(&e).to_string()))
    }

    /// Receives the next frame of the workload, if there is one.
    fn receive(&mut self) -> Option<Received> {
        while let Some((len, _)) = self.nic.recv(&mut self.input) {
            let Some(Frame { from, kind, number, body }) = frame::read(&self.input[..len]) else { continue };
            let is_right = self.pattern.matches(number, body);
            self.last_received = Instant::now();
            return Some(Received { from, kind, number, len, is_right });
        }
        None
    }

    /// Verifies and answers the peer's frames until it has finished.
    ///
    /// # Errors
    /// No frame was received for 10 s, or the interface failed.
    pub fn serve(&mut self) -> Result<Served> {
        let mut served = Served::default();
        let mut expected = 0;
        let mut acked = 0;
        let mut peer = None;
        loop {
            while let Some(Received { from, kind, number, len, is_right }) = self.receive() {
                peer = Some(from);
                served.mismatches += u64::from(!is_right);
                match kind {
                    Kind::Data => {
                        // A new stream starts at 0 again.
                        if number == 0 {
                            expected = 0;
                            acked = 0;
                        }
                        served.mismatches += u64::from(number != expected);
                        expected = number + 1;
                        served.frames += 1;
                        served.bytes += len as u64;
                        if expected - acked >= ACK_EVERY {
                            acked = expected;
                            self.send(from, Kind::Ack, acked)?;
                        }
                    }
                    Kind::Ping => {
                        served.pings += 1;
                        self.send(from, Kind::Pong, number)?;
                    }
                    Kind::Finish => {
                        self.send(from, Kind::FinishAck, number)?;
                        return Ok(served);
                    }
                    Kind::Ack | Kind::Pong | Kind::FinishAck => {}
                }
            }
            // Acknowledges the rest of a stream, whose length is no multiple of ACK_EVERY.
            if let Some(peer) = peer.filter(|_| expected > acked) {
                acked = expected;
                self.send(peer, Kind::Ack, acked)?;
            }
            self.wait(false)?;
        }
    }

    /// Streams to the peer, pings it, and reports that this end has finished. Progress is given to `report`.
    ///
    /// # Errors
    /// A frame was lost, no frame was received for 10 s, or the interface failed.
    pub fn drive(&mut self, plan: &NetPlan, report: &mut dyn FnMut(Event)) -> Result<NetResult> {
        let time = Duration::from_millis(plan.millis);
        let large = self.stream(plan.to, LARGE, time, "streaming frames of 1514 bytes", report)?;
        let small = self.stream(plan.to, SHORTEST, time, "streaming frames of 64 bytes", report)?;
        let (ping, mismatches) = self.ping(plan, report)?;
        self.finish(plan.to)?;
        Ok(NetResult { large, small, ping, pings: plan.pings, mismatches })
    }

    /// Streams large frames to the peer, whose pages are flipped, and reports that this end has finished.
    ///
    /// # Errors
    /// As [`Link::drive`].
    pub fn drive_stream(&mut self, plan: &NetPlan, report: &mut dyn FnMut(Event)) -> Result<Stream> {
        let time = Duration::from_millis(plan.millis);
        let stream = self.stream(plan.to, LARGE, time, "streaming frames of 1514 bytes, flipped", report)?;
        self.finish(plan.to)?;
        Ok(stream)
    }

    fn finish(&mut self, peer: [u8; 6]) -> Result<()> {
        self.send(peer, Kind::Finish, 0)?;
        loop {
            match self.receive() {
                Some(Received { kind: Kind::FinishAck, .. }) => return Ok(()),
                Some(_) => {}
                None => self.wait(false)?,
            }
        }
    }

    /// Streams frames of `len` bytes for a time, until all are acknowledged.
    fn stream(
        &mut self,
        to: [u8; 6],
        len: usize,
        time: Duration,
        phase: &str,
        report: &mut dyn FnMut(Event),
    ) -> Result<Stream> {
        let started = Instant::now();
        self.last_received = started;
        let mut last_report = started;
        let mut sent = 0;
        let mut acked = 0;
        loop {
            let elapsed = started.elapsed();
            let more = elapsed < time;
            if !more && acked == sent {
                break;
            }
            while more && sent - acked < WINDOW && self.queue(to, Kind::Data, sent, len)? {
                sent += 1;
            }
            self.nic.flush();
            let before = acked;
            while let Some(received) = self.receive() {
                if received.kind == Kind::Ack && received.number <= sent {
                    acked = acked.max(received.number);
                }
            }
            if acked == before {
                self.wait(more && sent - acked < WINDOW)?;
            }
            if last_report.elapsed() > WAIT_INTERVAL {
                last_report = Instant::now();
                report(progress(phase, elapsed.min(time).as_millis() as u64, time.as_millis() as u64));
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let bytes = sent * len as u64;
        let frames_s = sent as f64 / seconds;
        let gbit_s = bytes as f64 * 8e-9 / seconds;
        Ok(Stream { frames: sent, bytes, frames_s, gbit_s })
    }

    /// Sends the plan's pings one after the other; returns the number of wrong answers too.
    fn ping(&mut self, plan: &NetPlan, report: &mut dyn FnMut(Event)) -> Result<(Latency, u64)> {
        let mut latency = histogram()?;
        let mut wrong = 0;
        for number in 0..plan.pings {
            let sent = Instant::now();
            self.send(plan.to, Kind::Ping, number)?;
            loop {
                match self.receive() {
                    Some(Received { kind: Kind::Pong, number: answered, is_right, .. }) => {
                        wrong += u64::from(!is_right || answered != number);
                        break;
                    }
                    Some(_) => {}
                    None => self.wait(false)?,
                }
            }
            latency.saturating_record(sent.elapsed().as_nanos() as u64);
            if number % 256 == 0 {
                report(progress("pinging", number, plan.pings));
            }
        }
        Ok((percentiles(&latency), wrong))
    }
}

fn progress(phase: &str, done: u64, total: u64) -> Event {
    Event::Progress(Progress { phase: phase.into(), done, total })
}
