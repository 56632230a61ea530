//! A netfront interface as a port of a bridge, which bridges it to a tap.
#![allow(unsafe_code)] // pool buffers and frames' pages are raw memory

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bridge::headers::Headers;
use bridge::{
    Batch, Buffer, Caps, Csum, DropReason, Frame, Frames, Gso, GsoKind, HEAD, Interest, Offload, Pool, Port,
    Stats,
};
use netfront::{Config, Meta, Nic, ReceivedFrame, SendOutcome};

use super::flipped::{self, FlippedFrames};
use crate::error::chain;

/// Bytes of the longest frame: a packet of 64 KiB - 1 and its Ethernet header fit.
const BUFFER: usize = 66 << 10;
/// Frames received and not yet sent by another port.
const BUFFERS: u32 = 512;

/// A bridge port that sends and receives through a netfront interface.
pub struct NicPort {
    nic: Nic,
    config: Config,
    stats: Arc<Stats>,
    pool: Arc<Pool>,
    spare: Option<Buffer>,
    flipped: FlippedFrames,
}

impl NicPort {
    /// Creates a port for `nic`, which was opened with `config`.
    ///
    /// # Errors
    /// The memory for the receive buffers cannot be mapped.
    pub fn new(nic: Nic, config: Config) -> io::Result<NicPort> {
        let pool = Pool::new(BUFFERS, BUFFER)?;
        let stats = Arc::default();
        Ok(NicPort { nic, config, stats, pool, spare: None, flipped: FlippedFrames::new()? })
    }

    /// Receives one frame; `false` when there is none.
    fn receive(&mut self, frame: &mut Frame) -> bool {
        if self.nic.flips() {
            return self.receive_pages(frame);
        }
        let Some(mut buffer) = self.spare.take().or_else(|| self.pool.take()) else {
            self.stats.lost(DropReason::NoBuffer, 1);
            return false;
        };
        let Some((len, meta)) = self.nic.recv(buffer.bytes_mut()) else {
            self.spare = Some(buffer);
            return false;
        };
        self.give(buffer, len, &meta, frame);
        true
    }

    /// Receives one frame in its pages, and passes it on in them; `false` when there is none.
    fn receive_pages(&mut self, frame: &mut Frame) -> bool {
        let mut received = ReceivedFrame::default();
        let Some(meta) = self.nic.recv_pages(&mut received) else { return false };
        flipped::fill_head(&received, frame);
        let work = offload(&meta, frame.head());
        frame.set_offload(work);
        // The headers of a few packets are longer than a frame's head.
        let is_found = !meta.csum_blank || work.csum.is_some();
        if is_found && (received.len() <= HEAD || self.flipped.pass_on(&mut received, frame)) {
            return true;
        }
        let Some(mut buffer) = self.spare.take().or_else(|| self.pool.take()) else {
            self.stats.lost(DropReason::NoBuffer, 1);
            return false;
        };
        let bytes = buffer.bytes_mut();
        let len = received.len().min(bytes.len());
        flipped::gather(&received, &mut bytes[..len]);
        self.give(buffer, len, &meta, frame);
        true
    }

    /// Makes the first `len` bytes of a buffer a frame.
    fn give(&mut self, mut buffer: Buffer, len: usize, meta: &Meta, frame: &mut Frame) {
        let bytes = &buffer.bytes_mut()[..len];
        let head = len.min(HEAD);
        frame.fill_head(head).copy_from_slice(&bytes[..head]);
        frame.set_offload(offload(meta, bytes));
        match len - head {
            0 => self.spare = Some(buffer),
            rest => buffer.give_part_to(frame, head, rest),
        }
    }

    /// Sends one frame; `false` when the ring is full.
    fn transmit(&mut self, frame: &Frame) -> bool {
        let sent = self.nic.send_in_place(frame.len(), &meta(frame.offload()), |at, to| {
            let mut to = to;
            for piece in frame.range(at, to.len()) {
                // SAFETY: `to` is at least as long as the rest of the range, and does not overlap the frame's memory.
                unsafe { piece.copy_to_raw(to.ptr_guard_mut().as_ptr()) };
                let Ok(rest) = to.offset(piece.len()) else { break };
                to = rest;
            }
        });
        match sent {
            SendOutcome::Queued => self.stats.tx(1, frame.len() as u64),
            SendOutcome::Dropped => self.stats.lost(DropReason::Down, 1),
            SendOutcome::Full => return false,
        }
        true
    }
}

impl Port for NicPort {
    fn caps(&self) -> Caps {
        let mtu = self.nic.mtu();
        self.nic.negotiated().map_or(Caps::plain(mtu), |back| Caps {
            mtu,
            csum_v4: self.config.csum,
            csum_v6: self.config.csum && back.csum_v6,
            csum_anywhere: false,
            sg: back.sg,
            gso_v4: self.config.gso && back.gso_v4,
            gso_v6: self.config.gso && back.gso_v6,
        })
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        if self.nic.is_due() {
            self.take_events()?;
        }
        self.flipped.reap();
        let frames = into.len();
        let bytes = into.bytes();
        while let Some(frame) = into.slot() {
            if !self.receive(frame) {
                into.undo();
                break;
            }
        }
        let received = into.len() - frames;
        if received > 0 {
            self.stats.rx(received as u64, into.bytes() - bytes);
        }
        Ok(())
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        Ok(frames.iter().take_while(|frame| self.transmit(frame)).count())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flipped.reap();
        self.nic.flush();
        Ok(())
    }

    fn arm(&mut self, needs: Interest) -> io::Result<bool> {
        Ok(self.nic.arm(needs))
    }

    fn is_ready(&mut self, needs: Interest) -> io::Result<bool> {
        Ok(self.nic.is_ready(needs))
    }

    fn take_events(&mut self) -> io::Result<()> {
        self.nic.process_events().map_err(io::Error::other)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.nic.fd()
    }
}

impl Drop for NicPort {
    /// Closes the interface; an error has no effect any more.
    fn drop(&mut self) {
        if let Err(error) = self.nic.shutdown() {
            tracing::debug!(error = %chain(&error), "failed to close the interface");
        }
    }
}

/// Metadata of a received packet for the bridge. A blank checksum or segmentation is ignored where the packet has no
/// TCP or UDP header, as Linux's netfront does.
fn offload(meta: &Meta, packet: &[u8]) -> Offload {
    if !meta.csum_blank {
        return Offload { verified: meta.verified, ..Offload::NONE };
    }
    let Some(csum) = find_csum(packet) else { return Offload::NONE };
    let gso =
        meta.gso.map(|g| Gso { kind: if g.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 }, size: g.size });
    Offload { csum: Some(csum), verified: true, gso }
}

/// The position of a packet's TCP or UDP checksum, if all of it is in the packet.
fn find_csum(packet: &[u8]) -> Option<Csum> {
    let csum = Headers::parse(packet)?.csum()?;
    (usize::from(csum.start) + usize::from(csum.offset) + 2 <= packet.len()).then_some(csum)
}

fn meta(offload: &Offload) -> Meta {
    Meta {
        csum_blank: offload.csum.is_some(),
        verified: offload.verified,
        gso: offload.gso.map(|g| netfront::Gso { v6: g.kind == GsoKind::TcpV6, size: g.size }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn packet(header: &[u8], len: usize) -> Vec<u8> {
        let mut packet = vec![0; 12];
        packet.extend_from_slice(header);
        packet.resize(len, 0);
        packet
    }

    #[test]
    fn find_csum_behind_tags_options_and_extension_headers_gives_its_position() {
        let mut v4 = packet(&[0x81, 0, 0, 5, 8, 0, 0x46], 70);
        v4[18 + 9] = UDP;
        assert_eq!(find_csum(&v4), Some(Csum { start: 42, offset: 6 }));
        let mut v6 = packet(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 60], 90);
        v6[54] = TCP;
        assert_eq!(find_csum(&v6), Some(Csum { start: 62, offset: 16 }));
    }

    #[test]
    fn find_csum_of_fragments_other_protocols_and_truncated_packets_gives_none() {
        let mut v4 = packet(&[8, 0, 0x45], 60);
        v4[14 + 9] = TCP;
        assert!(find_csum(&v4).is_some());
        assert!((0..52).all(|len| find_csum(&v4[..len]).is_none()));
        v4[14 + 6] = 0x20;
        assert_eq!(find_csum(&v4), None);
        assert_eq!(find_csum(&packet(&[8, 6], 60)), None);
    }

    #[test]
    fn offload_of_a_blank_checksum_without_transport_header_gives_nothing() {
        let meta =
            Meta { csum_blank: true, verified: true, gso: Some(netfront::Gso { v6: false, size: 1448 }) };
        assert_eq!(offload(&meta, &packet(&[8, 6], 60)), Offload::NONE);
    }
}
