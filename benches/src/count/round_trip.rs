//! One network round trip: a datagram of 64 bytes and its echo between two namespaces, as of row N7.

use super::{Subject, table};
use crate::cargo::{self, TAPFWD};
use crate::link::{Echo, Link, round_trip_times};
use crate::namespace::ADDRESSES;
use nix::unistd::gettid;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Ours, the program that forwards between two taps, and veth with Linux's bridge: a table each.
///
/// # Errors
/// A side does not come up, or strace is not installed.
pub(super) fn tables(xpv: &Path) -> Result<String, String> {
    let sides = [
        ("xpv: two guests and dom0", Link::xpv(xpv)?),
        ("tapfwd", Link::tapfwd(&cargo::build_here(TAPFWD)?)?),
        ("veth and Linux bridge", Link::veth()?),
    ];
    let tables = sides.iter().map(|(title, link)| {
        let count = count(link).map_err(|why| format!("{title}: {why}"))?;
        Ok(format!("{title}:\n\n{count}"))
    });
    Ok(tables.collect::<Result<Vec<_>, String>>()?.join("\n"))
}

fn count(link: &Link) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("a datagram's round trip: {e}");
    let echo = link.ends.server.run(|| Echo::bind(ADDRESSES[1])).map_err(failed)?;
    let client = link.ends.client.run(|| UdpSocket::bind((ADDRESSES[0], 0))).map_err(failed)?;
    client.connect(echo.address()).map_err(failed)?;
    let processes = link.processes()?.into_iter().map(|(name, id)| Subject { name, id, is_process: true });
    let stop = AtomicBool::new(false);
    let (tids, tid) = channel();
    let (orders, to_client) = channel();
    let (done, answers) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            report(&tids);
            let _ = echo.run(&stop);
        });
        let server = tid.recv().expect("its thread runs");
        let client = &client;
        let tids = &tids;
        scope.spawn(move || {
            report(tids);
            serve_orders(client, &to_client, &done);
        });
        let thread = |name: &str, id| Subject { name: name.to_owned(), id, is_process: false };
        let mut subjects = vec![thread("client", tid.recv().expect("its thread runs"))];
        subjects.extend(processes);
        subjects.push(thread("server", server));
        let counted = table(&subjects, |operations| {
            orders.send(operations).expect("the client's thread runs");
            answers.recv().expect("the client's thread runs").map_err(failed)
        });
        stop.store(true, Relaxed);
        drop(orders);
        counted
    })
}

fn report(tids: &Sender<u32>) {
    tids.send(gettid().as_raw().cast_unsigned()).expect("it is waited for");
}

/// Makes as many round trips as it is told to, on a thread that does nothing else.
fn serve_orders(client: &UdpSocket, orders: &Receiver<usize>, done: &Sender<std::io::Result<()>>) {
    for operations in orders {
        let outcome = round_trip_times(client, |count| count < operations).map(drop);
        if done.send(outcome).is_err() {
            return;
        }
    }
}
