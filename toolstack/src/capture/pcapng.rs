//! Captured frames as pcapng (draft-ietf-opsawg-pcapng-03): one section, one interface, times in nanoseconds.
//!
//! A frame's offloads, which no option of the format has, are in its comment.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use bridge::{CaptureDirection, CapturedFrame, CapturedFrames, GsoKind, Offload};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

/// `epb_flags`, bits 0 and 1.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// `if_tsresol`: 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// The interface that is captured.
#[derive(Clone, Debug)]
pub struct Interface {
    /// The port's name.
    pub name: String,
    /// Whose it is, in words.
    pub description: String,
    /// The most bytes of a frame.
    pub snaplen: u32,
    /// When the capture began, since 1970.
    pub began: Duration,
}

/// Writes frames; each block is whole once [`Writer::flush`] has returned.
pub struct Writer<W: Write> {
    writer: PcapNgWriter<W>,
    began: Duration,
    last: Duration,
    written: u64,
    lost: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the section's header and the interface's description.
    ///
    /// # Errors
    /// Those of writing.
    pub fn new(to: W, interface: Interface) -> io::Result<Writer<W>> {
        let program = concat!("xpv ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(program.into())],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(to, section).map_err(into_io)?;
        let began = interface.began;
        let options = vec![
            InterfaceDescriptionOption::IfName(interface.name.into()),
            InterfaceDescriptionOption::IfDescription(interface.description.into()),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        let description =
            InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: interface.snaplen, options };
        writer.write_pcapng_block(description).map_err(into_io)?;
        Ok(Writer { writer, began, last: began, written: 0, lost: 0 })
    }

    /// Writes frames, `most` of them at most in all; `true` if there are as many now.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn write(&mut self, captured: &CapturedFrames, most: u64) -> io::Result<bool> {
        for (frame, bytes) in captured.iter() {
            if self.written >= most {
                break;
            }
            self.write_frame(frame, bytes)?;
        }
        Ok(self.written >= most)
    }

    fn write_frame(&mut self, frame: &CapturedFrame, bytes: &[u8]) -> io::Result<()> {
        let direction = match frame.direction {
            CaptureDirection::FromPort => INBOUND,
            CaptureDirection::ToPort => OUTBOUND,
        };
        let mut options = vec![EnhancedPacketOption::Flags(direction)];
        if frame.lost > 0 {
            options.push(EnhancedPacketOption::DropCount(frame.lost));
        }
        options.extend(comment(&frame.offload).map(|text| EnhancedPacketOption::Comment(text.into())));
        self.last = self.began + frame.time;
        self.written += 1;
        self.lost += frame.lost;
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: self.last,
            original_len: frame.len,
            data: Cow::Borrowed(bytes),
            options,
        };
        self.writer.write_pcapng_block(block).map(drop).map_err(into_io)
    }

    /// Hands all that was written on.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }

    /// Writes how many frames there were, and that `lost` more were left out after the last one.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn finish(mut self, lost: u64) -> io::Result<()> {
        let lost = self.lost + lost;
        let options = vec![
            InterfaceStatisticsOption::IsbIfRecv(self.written + lost),
            InterfaceStatisticsOption::IsbIfDrop(lost),
            InterfaceStatisticsOption::IsbUsrDeliv(self.written),
        ];
        // The format has the upper half of a time first, and the library writes one number.
        let timestamp = (self.last.as_nanos() as u64).rotate_left(32);
        let statistics = InterfaceStatisticsBlock { interface_id: 0, timestamp, options };
        self.writer.write_pcapng_block(statistics).map_err(into_io)?;
        self.flush()
    }
}

/// What a frame's sender has left undone, in words.
fn comment(offload: &Offload) -> Option<String> {
    let csum = offload
        .csum
        .map(|csum| format!("checksum not filled in: start {}, offset {}", csum.start, csum.offset));
    let gso = offload.gso.map(|gso| {
        let kind = match gso.kind {
            GsoKind::TcpV4 => "TCPv4",
            GsoKind::TcpV6 => "TCPv6",
            GsoKind::Udp => "UDP",
        };
        format!("GSO {kind}: segments of {} bytes", gso.size)
    });
    let parts: Vec<String> = csum.into_iter().chain(gso).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn into_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
