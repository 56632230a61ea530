//! `eventfd_echo <EVENTFD >EVENTFD`: sends each event of one eventfd back by the other: what two processes cannot do without
//! that tell each other by turns. Row B5 measures it. It prints nothing, and runs until it is killed.

use nix::unistd::{read, write};
use std::io::{stdin, stdout};
use std::os::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut event = [0; 8];
    loop {
        let sent =
            read(stdin().as_fd(), &mut event).and_then(|_| write(stdout().as_fd(), &1u64.to_ne_bytes()));
        if let Err(error) = sent {
            eprintln!("eventfd_echo: expected an eventfd as standard input and as standard output: {error}");
            return ExitCode::FAILURE;
        }
    }
}
