//! `nbd-attach SOCKET DEVICE` makes an export the kernel's block device until it is killed, as
//! `nbd-client -unix SOCKET DEVICE` does: for initramfs without that program. Source: linux/nbd.h and the NBD
//! protocol's doc/proto.md.
#![allow(unsafe_code)] // ioctls of the device

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

const BLOCK: u64 = 512;
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
    let (device, stream) = (device.as_raw_fd(), stream.as_raw_fd());
    // SAFETY: an open nbd device and its requests, which take numbers; the socket lives until the last returns.
    unsafe {
        ioctls::set_block_size(device, BLOCK as i32)?;
        ioctls::set_blocks(device, i32::try_from(size / BLOCK)?)?;
        ioctls::set_flags(device, i32::from(flags))?;
        ioctls::set_sock(device, stream)?;
        ioctls::do_it(device)?;
    }
    Ok(())
}

/// The default export's bytes, and what it can do.
fn negotiate(stream: &mut UnixStream) -> Result<(u64, u16), Box<dyn Error>> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
        return Err(format!("found {greeting:?}, expected the greeting of an NBD server").into());
    }
    let option = [&CLIENT_FLAGS.to_be_bytes()[..], b"IHAVEOPT", &EXPORT_NAME.to_be_bytes(), &[0; 4]].concat();
    stream.write_all(&option)?;
    let (mut size, mut flags) = ([0; 8], [0; 2]);
    stream.read_exact(&mut size)?;
    stream.read_exact(&mut flags)?;
    Ok((u64::from_be_bytes(size), u16::from_be_bytes(flags)))
}
