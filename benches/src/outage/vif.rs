//! Datagrams from one guest to another, at a constant rate and without answers.

use super::stalls::Stalls;
use crate::namespace::{ADDRESSES, Ends};
use std::io::{ErrorKind, Result};
use std::net::UdpSocket;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two datagrams.
const INTERVAL: Duration = Duration::from_millis(1);

/// Two threads, which send and receive until this is dropped. A stall is the time between two datagrams that arrive.
pub(super) struct VifWatch {
    stalls: Arc<Stalls>,
    threads: Vec<JoinHandle<()>>,
}

impl VifWatch {
    /// Watches the way from the client's namespace to the server's, whose interfaces it gives addresses.
    ///
    /// # Errors
    /// There are no interfaces.
    pub(super) fn start(ends: &Ends) -> std::result::Result<Self, String> {
        ends.configure()?;
        let failed = |e: std::io::Error| format!("a socket in a guest's namespace: {e}");
        let receiver = ends.server.run(|| UdpSocket::bind((ADDRESSES[1], 0))).map_err(failed)?;
        receiver.set_read_timeout(Some(Duration::from_millis(100))).map_err(failed)?;
        let address = receiver.local_addr().map_err(failed)?;
        let sender = ends.client.run(|| UdpSocket::bind((ADDRESSES[0], 0))).map_err(failed)?;
        sender.connect(address).map_err(failed)?;
        let stalls = Arc::new(Stalls::default());
        let send_until = Arc::clone(&stalls);
        let observed = Arc::clone(&stalls);
        let receive = move || {
            if let Err(error) = receive(&receiver, &observed) {
                observed.failed(format!("receiving datagrams: {error}"));
            }
        };
        let threads =
            vec![std::thread::spawn(move || send(&sender, &send_until)), std::thread::spawn(receive)];
        Ok(Self { stalls, threads })
    }

    pub(super) fn stalls(&self) -> &Stalls {
        &self.stalls
    }
}

fn send(sender: &UdpSocket, stalls: &Stalls) {
    while !stalls.is_stopped() {
        // What cannot be sent, as the other guest's address is not known, is lost as if it had been sent.
        let _ = sender.send(b"a datagram");
        std::thread::sleep(INTERVAL);
    }
}

fn receive(receiver: &UdpSocket, stalls: &Stalls) -> Result<()> {
    let mut last: Option<Instant> = None;
    let mut bytes = [0; 64];
    loop {
        match receiver.recv(&mut bytes) {
            Ok(_) => {
                let stall = last.replace(Instant::now()).map_or(Duration::ZERO, |last| last.elapsed());
                if !stalls.completed(stall) {
                    return Ok(());
                }
            }
            Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(e),
            Err(_) if stalls.is_stopped() => return Ok(()),
            Err(_) => {}
        }
    }
}

impl Drop for VifWatch {
    fn drop(&mut self) {
        self.stalls.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
