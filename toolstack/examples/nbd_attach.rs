//! `nbd-attach SOCKET DEVICE` attaches an NBD export to a block device of the kernel until it is killed, as
//! `nbd-client -unix SOCKET DEVICE` does, for an initramfs without that program. Source: linux/nbd.h and the NBD
//! protocol's doc/proto.md.
#![allow(unsafe_code)] // ioctls of the nbd device

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

mod ioctls {
    nix::ioctl_write_int_bad!(set_sock, nix::request_code_none!(0xab, 0));
    nix::ioctl_write_int_bad!(set_block_size, nix::request_code_none!(0xab, 1));
    nix::ioctl_none!(do_it, 0xab, 3);
    nix::ioctl_write_int_bad!(set_blocks, nix::request_code_none!(0xab, 7));
    nix::ioctl_write_int_bad!(set_flags, nix::request_code_none!(0xab, 10));
}

const BLOCK_SIZE: u64 = 512;
/// `NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES`.
const CLIENT_FLAGS: u32 = 3;
/// `NBD_OPT_EXPORT_NAME`.
const EXPORT_NAME: u32 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().collect();
    let [_, socket, device] = &args[..] else { return Err("expected SOCKET DEVICE".into()) };
    let mut stream = UnixStream::connect(socket)?;
    let (size, flags) = negotiate(&mut stream)?;
    let device = File::options().read(true).write(true).open(device)?;
    let device = device.as_raw_fd();
    let stream = stream.as_raw_fd();
    // SAFETY: the device is open, the requests take integers, and the socket is open until the last call returns.
    unsafe {
        ioctls::set_block_size(device, BLOCK_SIZE as i32)?;
        ioctls::set_blocks(device, i32::try_from(size / BLOCK_SIZE)?)?;
        ioctls::set_flags(device, i32::from(flags))?;
        ioctls::set_sock(device, stream)?;
        ioctls::do_it(device)?;
    }
    Ok(())
}

/// Performs the handshake; returns the default export's size in bytes and its transmission flags.
fn negotiate(stream: &mut UnixStream) -> Result<(u64, u16), Box<dyn Error>> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
        return Err(format!("found {greeting:?}, expected the greeting of an NBD server").into());
    }
    let option = [&CLIENT_FLAGS.to_be_bytes()[..], b"IHAVEOPT", &EXPORT_NAME.to_be_bytes(), &[0; 4]].concat();
    stream.write_all(&option)?;
    let mut size = [0; 8];
    let mut flags = [0; 2];
    stream.read_exact(&mut size)?;
    stream.read_exact(&mut flags)?;
    Ok((u64::from_be_bytes(size), u16::from_be_bytes(flags)))
}
