//! A guest's work on its interface: streams in a window, so that nothing is lost to a full queue; pings; and the
//! other side, which compares every byte before it acknowledges.

use std::time::{Duration, Instant};

use netfront::{Nic, Sent};

use super::disk::{histogram, percentiles};
use super::frame::{self, Frame, Kind, SHORTEST};
use super::pattern::Pattern;
use super::protocol::{Event, NetPlan, NetResult, Progress, Served, Stream};
use crate::error::{Error, Result};

/// Bytes of a full frame.
const LARGE: usize = 1514;
/// Frames in flight.
const WINDOW: u64 = 128;
/// Frames that are acknowledged together.
const ACK_EVERY: u64 = 32;
/// How long nothing may come from the peer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a wait may be before it looks at the clock.
const SLICE: Duration = Duration::from_millis(50);

/// An interface, and what the demo needs beside it.
pub struct Link<'a> {
    nic: &'a mut Nic,
    pattern: Pattern,
    input: Vec<u8>,
    output: Vec<u8>,
    heard: Instant,
}

impl<'a> Link<'a> {
    /// Frames on `nic` with the patterns of `seed`.
    pub fn new(nic: &'a mut Nic, seed: u64) -> Link<'a> {
        let (input, output) = (vec![0; 2048], vec![0; LARGE]);
        Link { nic, pattern: Pattern::new(seed), input, output, heard: Instant::now() }
    }

    /// Sends a frame of so many bytes; `false` when there is no room.
    fn send(&mut self, to: [u8; 6], kind: Kind, number: u64, len: usize) -> Result<bool> {
        let bytes = &mut self.output[..len];
        frame::write(bytes, to, self.nic.mac(), kind, number, &self.pattern);
        match self.nic.send(bytes) {
            Sent::Queued => Ok(true),
            Sent::Full => Ok(false),
            Sent::Dropped => Err(Error::other("the interface went down")),
        }
    }

    /// Sends a short frame, waiting for room.
    fn tell(&mut self, to: [u8; 6], kind: Kind, number: u64) -> Result<()> {
        while !self.send(to, kind, number, SHORTEST)? {
            self.wait(true)?;
        }
        self.nic.flush();
        Ok(())
    }

    fn wait(&mut self, room: bool) -> Result<()> {
        if self.heard.elapsed() > PATIENCE {
            return Err(Error::Other(format!("nothing came from the peer for {} s", PATIENCE.as_secs())));
        }
        self.nic.wait(room, SLICE).map_err(|e| Error::Other(e.to_string()))
    }

    /// The next frame of ours, if one is there: what it is, and whether its pattern is right.
    fn next(&mut self) -> Option<(Frame<'static>, bool, usize)> {
        while let Some((len, _)) = self.nic.recv(&mut self.input) {
            let Some(seen) = frame::read(&self.input[..len]) else { continue };
            let right = self.pattern.matches(seen.number, seen.body);
            self.heard = Instant::now();
            return Some((Frame { body: &[], ..seen }, right, len));
        }
        None
    }

    /// Answers the peer until it says goodbye.
    ///
    /// # Errors
    /// The peer is silent, or the interface is gone.
    pub fn serve(&mut self) -> Result<Served> {
        let (mut served, mut expected, mut peer) = (Served::default(), 0, None);
        let mut acked = 0;
        loop {
            while let Some((seen, right, len)) = self.next() {
                peer = Some(seen.from);
                served.mismatches += u64::from(!right);
                match seen.kind {
                    Kind::Data => {
                        // A new stream starts at 0 again.
                        if seen.number == 0 {
                            (expected, acked) = (0, 0);
                        }
                        served.mismatches += u64::from(seen.number != expected);
                        expected = seen.number + 1;
                        served.frames += 1;
                        served.bytes += len as u64;
                        if expected - acked >= ACK_EVERY {
                            acked = expected;
                            self.tell(seen.from, Kind::Ack, acked)?;
                        }
                    }
                    Kind::Ping => {
                        served.pings += 1;
                        self.tell(seen.from, Kind::Pong, seen.number)?;
                    }
                    Kind::Finish => {
                        self.tell(seen.from, Kind::FinishAck, seen.number)?;
                        return Ok(served);
                    }
                    Kind::Ack | Kind::Pong | Kind::FinishAck => {}
                }
            }
            // The end of a stream is no multiple of anything.
            if let Some(peer) = peer.filter(|_| expected > acked) {
                acked = expected;
                self.tell(peer, Kind::Ack, acked)?;
            }
            self.wait(false)?;
        }
    }

    /// Streams to the peer, pings it, says goodbye.
    ///
    /// # Errors
    /// A frame was lost, the peer is silent, or the interface is gone.
    pub fn drive(&mut self, plan: &NetPlan, tell: &mut dyn FnMut(Event)) -> Result<NetResult> {
        let time = Duration::from_millis(plan.millis);
        let large = self.stream(plan.to, LARGE, time, "streaming frames of 1514 bytes", tell)?;
        let small = self.stream(plan.to, SHORTEST, time, "streaming frames of 64 bytes", tell)?;
        let (ping, mismatches) = self.ping(plan, tell)?;
        self.tell(plan.to, Kind::Finish, 0)?;
        loop {
            match self.next() {
                Some((Frame { kind: Kind::FinishAck, .. }, ..)) => break,
                Some(_) => {}
                None => self.wait(false)?,
            }
        }
        Ok(NetResult { large, small, ping, pings: plan.pings, mismatches })
    }

    fn stream(
        &mut self,
        to: [u8; 6],
        len: usize,
        time: Duration,
        phase: &str,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Stream> {
        let begun = Instant::now();
        self.heard = begun;
        let mut last_told = begun;
        let (mut sent, mut acked) = (0, 0);
        loop {
            let elapsed = begun.elapsed();
            let more = elapsed < time;
            if !more && acked == sent {
                break;
            }
            while more && sent - acked < WINDOW && self.send(to, Kind::Data, sent, len)? {
                sent += 1;
            }
            self.nic.flush();
            let before = acked;
            while let Some((seen, ..)) = self.next() {
                if seen.kind == Kind::Ack && seen.number <= sent {
                    acked = acked.max(seen.number);
                }
            }
            if acked == before {
                self.wait(more && sent - acked < WINDOW)?;
            }
            if last_told.elapsed() > SLICE {
                last_told = Instant::now();
                tell(progress(phase, elapsed.min(time).as_millis() as u64, time.as_millis() as u64));
            }
        }
        let (seconds, bytes) = (begun.elapsed().as_secs_f64(), sent * len as u64);
        let (frames_s, gbit_s) = (sent as f64 / seconds, bytes as f64 * 8e-9 / seconds);
        Ok(Stream { frames: sent, bytes, frames_s, gbit_s })
    }

    fn ping(
        &mut self,
        plan: &NetPlan,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(super::protocol::Latency, u64)> {
        let (mut latency, mut wrong) = (histogram()?, 0);
        for number in 0..plan.pings {
            let asked = Instant::now();
            self.tell(plan.to, Kind::Ping, number)?;
            loop {
                match self.next() {
                    Some((Frame { kind: Kind::Pong, number: answered, .. }, right, _)) => {
                        wrong += u64::from(!right || answered != number);
                        break;
                    }
                    Some(_) => {}
                    None => self.wait(false)?,
                }
            }
            latency.saturating_record(asked.elapsed().as_nanos() as u64);
            if number % 256 == 0 {
                tell(progress("pinging", number, plan.pings));
            }
        }
        Ok((percentiles(&latency), wrong))
    }
}

fn progress(phase: &str, done: u64, total: u64) -> Event {
    Event::Progress(Progress { phase: phase.into(), done, total })
}
