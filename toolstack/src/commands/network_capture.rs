//! `xpv network-capture`: the frames of a guest's network interface as pcapng.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde_json::Value;

use crate::capture;
use crate::control::client::Connection;
use crate::control::protocol::{CaptureQuery, Request};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::listing::Listing;
use crate::machine::process;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Write the frames that cross a network interface of a guest, as pcapng
///
/// Frames are taken at the interface's port of its bridge: what the guest has sent, before any of it is dropped, and what was sent to
/// it. Whoever reads slowly loses records, which are counted, and no frame. It ends by Ctrl-C, or where the interface is disconnected:
/// `xpv network-capture web 0 | wireshark -k -i -`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// The interface: its device number or its MAC address
    #[arg(value_name = "DEVID|MAC")]
    vif: String,

    /// The file to write; - is standard output
    #[arg(short, long = "write", value_name = "FILE", default_value = "-")]
    write: PathBuf,

    /// Keep so many bytes of each frame at most
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    snaplen: Option<u32>,

    /// Only frames from or to this MAC, IPv4 or IPv6 address; of ARP those that name it
    #[arg(long, value_name = "ADDRESS", value_parser = checked_host)]
    host: Option<String>,

    /// Only frames from or to this port of TCP, UDP or SCTP
    #[arg(long)]
    port: Option<u16>,

    /// Only frames of this type: arp, ip, ip6, vlan, or a number such as 0x88cc; also behind VLAN tags
    #[arg(long, value_name = "TYPE", value_parser = ether_type)]
    ether_type: Option<u16>,

    /// End after so many frames
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// The guest is a domain of the Xen host that this program runs on
    #[arg(long)]
    xen: bool,
}

/// Captures until a signal, or until nothing follows.
///
/// # Errors
/// There is no such interface, it is not connected, no dom0 answers, or the file cannot be written.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let to_stdout = args.write.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(Error::other(
            "standard output is a terminal: expected -w FILE, or a program that reads pcapng",
        ));
    }
    let mut listing = Listing::open(dir, args.xen)?;
    let domain = listing.find_guest(&args.domain)?;
    let devid = listing.find_vif(&domain, &args.vif)?.id;
    let query = CaptureQuery {
        domid: domain.domid.0,
        devid,
        snaplen: args.snaplen,
        host: args.host.clone(),
        port: args.port,
        ether_type: args.ether_type,
        count: args.count,
    };
    let stop = process::stop_signal()?;
    let mut connection = Connection::open(dir)?;
    let _: Value = connection.call(&Request::Capture(query))?;
    let (mut stream, mut bytes) = connection.into_stream().map_err(|e| Error::io("reading from dom0", e))?;
    // Made once it is known that there is something to write.
    let mut to: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stdout()),
        false => {
            let file = File::create(&args.write);
            Box::new(file.map_err(|e| Error::file(&args.write, "creating", e))?)
        }
    };
    let mut is_stopping = false;
    loop {
        match to.write_all(&bytes).and_then(|()| to.flush()) {
            // Whoever reads has seen enough.
            Err(error) if to_stdout && error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|e| Error::file(&args.write, "writing", e))?,
        }
        if !is_stopping {
            process::wait_any(&[stop.as_fd(), stream.as_fd()])?;
            is_stopping = process::is_readable(&[stop.as_fd()])?;
            if is_stopping {
                // The rest follows, up to the end of the last block.
                stream.shutdown(Shutdown::Write).map_err(|e| Error::io("ending the capture", e))?;
            }
        }
        bytes.resize(CHUNK, 0);
        let read = stream.read(&mut bytes).map_err(|e| Error::io("reading from dom0", e))?;
        if read == 0 {
            return Ok(());
        }
        bytes.truncate(read);
    }
}

fn checked_host(text: &str) -> std::result::Result<String, String> {
    capture::host(text).map(|_| text.to_owned())
}

fn ether_type(text: &str) -> std::result::Result<u16, String> {
    let number = || match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text {
        "arp" => Ok(0x0806),
        "ip" | "ipv4" => Ok(0x0800),
        "ip6" | "ipv6" => Ok(0x86dd),
        "vlan" => Ok(0x8100),
        _ => number()
            .ok_or_else(|| format!("found {text:?}, expected arp, ip, ip6, vlan or a number such as 0x88cc")),
    }
}
