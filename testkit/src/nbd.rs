//! A minimal NBD client that reports which writes were acknowledged. Its functions return the errors of the socket, and of
//! requests that failed.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// A connection to an export.
#[derive(Debug)]
pub struct Nbd(UnixStream, u64);

impl Nbd {
    /// Connects to an export's socket.
    pub fn connect(socket: &Path) -> io::Result<Nbd> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.read_exact(&mut [0; 18])?;
        // Flags: no zeroes after the export's size; then the option for the export without a name.
        let hello = [&3_u32.to_be_bytes()[..], b"IHAVEOPT", &1_u32.to_be_bytes(), &[0; 4]].concat();
        stream.write_all(&hello)?;
        let mut described = [0; 10];
        stream.read_exact(&mut described)?;
        let (size, _flags) = described.split_at(8);
        Ok(Nbd(stream, u64::from_be_bytes(size.try_into().map_err(io::Error::other)?)))
    }

    /// The export's size in bytes, when the connection was made.
    pub fn size(&self) -> u64 {
        self.1
    }

    fn request(&mut self, kind: u16, block: u64, len: usize, data: &[u8]) -> io::Result<()> {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(block.to_be_bytes());
        bytes.extend((block * BLOCK as u64).to_be_bytes());
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend(data);
        self.0.write_all(&bytes)
    }

    fn reply(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 16];
        self.0.read_exact(&mut bytes)?;
        let error = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error as i32));
        }
        let cookie: [u8; 8] = bytes[8..].try_into().map_err(io::Error::other)?;
        Ok(u64::from_be_bytes(cookie))
    }

    /// Sends a block to write, without waiting for the reply.
    pub fn send_write(&mut self, block: u64, data: &[u8; BLOCK]) -> io::Result<()> {
        self.send_blocks(block, data)
    }

    /// Sends consecutive blocks to write, without waiting for the reply, which has the first one's number.
    pub fn send_blocks(&mut self, first: u64, data: &[u8]) -> io::Result<()> {
        self.request(1, first, data.len(), data)
    }

    /// Waits for the next reply to a write; returns the block's number.
    pub fn written(&mut self) -> io::Result<u64> {
        self.reply()
    }

    /// Reads a block; no write may be in flight.
    pub fn read(&mut self, block: u64) -> io::Result<[u8; BLOCK]> {
        self.request(0, block, BLOCK, &[])?;
        self.reply()?;
        let mut data = [0; BLOCK];
        self.0.read_exact(&mut data)?;
        Ok(data)
    }
}
