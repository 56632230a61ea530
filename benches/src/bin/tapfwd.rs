//! `tapfwd NETNS NETNS`: forwards frames between two taps, and does nothing else: the least that a program must do which
//! carries frames between two interfaces through user space.
//!
//! It makes a tap `eth0` in each of the two network namespaces, which are given by paths, with the offloads of xpv's taps. A
//! thread a direction blocks in read(2) and writes what it read, `struct virtio_net_hdr` included, to the other tap. It prints
//! `ready`, and runs until its standard input ends.

use benches::namespace::INTERFACE;
use bridge::Port;
use bridge::port::netdev;
use bridge::port::tap::Tap;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{read, write};
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

/// The header, and the longest frame: an IP packet with its Ethernet header and a VLAN tag.
const LONGEST: usize = 10 + 18 + 65_535;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [one, other] => run(one, other),
        _ => Err("expected two network namespaces, such as /run/netns/a /run/netns/b".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("tapfwd: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(one: &str, other: &str) -> Result<(), String> {
    let one = tap_in(one)?;
    let other = tap_in(other)?;
    std::thread::scope(|scope| {
        for (from, to) in [(one.fd(), other.fd()), (other.fd(), one.fd())] {
            scope.spawn(move || {
                let error = forward(from, to);
                eprintln!("tapfwd: {error}");
                std::process::exit(1);
            });
        }
        println!("ready");
        // Blocks until whoever started this ends, or says so.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    })
}

/// A tap in the namespace at a path, set up, whose reads block.
fn tap_in(namespace: &str) -> Result<Tap, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{namespace}: {e}");
    let file = File::open(namespace).map_err(|e| failed(&e))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| failed(&e))?;
    let tap = Tap::create(INTERFACE).map_err(|e| failed(&e))?;
    netdev::set_up(tap.name()).map_err(|e| failed(&e))?;
    let flags = fcntl(tap.fd(), FcntlArg::F_GETFL).map_err(|e| failed(&e))?;
    let blocking = OFlag::from_bits_retain(flags).difference(OFlag::O_NONBLOCK);
    fcntl(tap.fd(), FcntlArg::F_SETFL(blocking)).map_err(|e| failed(&e))?;
    Ok(tap)
}

/// Forwards until one of the taps fails; returns how.
fn forward(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Errno {
    let mut frame = vec![0; LONGEST];
    loop {
        let read = match read(from, &mut frame) {
            Ok(read) => read,
            Err(Errno::EINTR) => continue,
            Err(errno) => return errno,
        };
        match write(to, &frame[..read]) {
            // Of a frame that the other interface does not take, as it is down or has no memory, nothing is left.
            Ok(_) | Err(Errno::EINTR | Errno::EIO | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINVAL) => {}
            Err(errno) => return errno,
        }
    }
}
