//! Real sockets, and blocks in memory that complete requests later and out of order.

use super::*;
use crate::nbd::Export;
use crate::nbd::proto::{self, REPLY, REQUEST, Reader, command, option};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::thread;
use std::time::Duration;

/// Memory that takes four requests at a time and completes them in reverse order.
struct Ram {
    memory: Vec<u8>,
    export: Export,
    waiting: Vec<(u64, Op)>,
    event: EventFd,
}

impl Ram {
    fn new(size: usize) -> Ram {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Ram { memory: vec![0; size], export: export(size as u64), waiting: Vec::new(), event }
    }

    fn execute(&mut self, op: Op) -> Outcome {
        match op {
            Op::Read { offset, len } => Ok(self.memory[offset as usize..][..len as usize].to_vec()),
            Op::Write { offset, data, .. } => {
                self.memory[offset as usize..][..data.len()].copy_from_slice(&data);
                Ok(Vec::new())
            }
            Op::WriteZeroes { offset, len, .. } => {
                self.memory[offset as usize..][..len as usize].fill(0);
                Ok(Vec::new())
            }
            Op::Flush | Op::Trim { .. } => Ok(Vec::new()),
        }
    }
}

impl Blocks for Ram {
    fn export(&self) -> &Export {
        &self.export
    }

    fn set_in_use(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self, id: u64, op: Op) -> Result<(), Op> {
        if self.waiting.len() == 4 {
            return Err(op);
        }
        self.waiting.push((id, op));
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<(u64, Outcome)>) -> io::Result<()> {
        while let Some((id, op)) = self.waiting.pop() {
            completed.push((id, self.execute(op)));
        }
        Ok(())
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(!self.waiting.is_empty())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

fn export(size: u64) -> Export {
    Export { name: "xvda".into(), size, block: 512, read_only: false, trim: true }
}

/// Runs `client` against a server, which must return once it is stopped.
fn with_server(client: impl FnOnce(&dyn Fn() -> UnixStream)) {
    with_timeout(HANDSHAKE_TIMEOUT, client);
}

fn with_timeout(handshake: Duration, client: impl FnOnce(&dyn Fn() -> UnixStream)) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd");
    let listener = UnixListener::bind(&path).unwrap();
    let stop = EventFd::new().unwrap();
    thread::scope(|scope| {
        let stop = &stop;
        // Also where the client panics: the scope waits for the server.
        let stops = StopOnDrop(stop);
        let server = scope.spawn(move || serve(&listener, &mut Ram::new(1 << 16), handshake, stop.as_fd()));
        client(&|| {
            let stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        });
        drop(stops);
        server.join().unwrap().unwrap();
    });
}

/// Stops the server when it is dropped.
struct StopOnDrop<'a>(&'a EventFd);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}

/// Performs the handshake.
fn negotiate(mut stream: UnixStream) -> UnixStream {
    stream.read_exact(&mut [0; 18]).unwrap();
    let mut option = 3u32.to_be_bytes().to_vec();
    option.extend(b"IHAVEOPT");
    option.extend(option::EXPORT_NAME.to_be_bytes());
    option.extend([0; 4]);
    stream.write_all(&option).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Reads a reply, whose error must be 0, and returns its cookie.
fn reply(stream: &mut UnixStream) -> u64 {
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes).unwrap();
    let mut reader = Reader(&bytes);
    assert_eq!((reader.u32(), reader.u32()), (Some(REPLY), Some(0)));
    reader.u64().unwrap()
}

#[test]
fn concurrent_requests_all_complete_and_clients_see_each_others_writes() {
    with_server(|connect| {
        let mut writer = negotiate(connect());
        let mut reader = negotiate(connect());
        let mut all = Vec::new();
        for n in 0..128 {
            all.extend(request(command::WRITE, n, n * 512, 512));
            all.extend([n as u8; 512]);
        }
        writer.write_all(&all).unwrap();
        let mut cookies: Vec<u64> = (0..128).map(|_| reply(&mut writer)).collect();
        cookies.sort_unstable();
        assert!(cookies.into_iter().eq(0..128));
        reader.write_all(&request(command::READ, 1, 0, 1 << 16)).unwrap();
        assert_eq!(reply(&mut reader), 1);
        let mut bytes = vec![0; 1 << 16];
        reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.chunks(512).enumerate().all(|(n, chunk)| chunk == [n as u8; 512]));
    });
}

#[test]
fn disconnecting_and_malformed_clients_do_not_disturb_others() {
    with_server(|connect| {
        let mut good = negotiate(connect());
        drop(connect());
        connect().write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut half = negotiate(connect());
        half.write_all(&request(command::WRITE, 1, 0, 4096)).unwrap();
        drop(half);
        let mut unread = negotiate(connect());
        for n in 0..64 {
            unread.write_all(&request(command::READ, n, 0, 1 << 16)).unwrap();
        }
        drop(unread);
        let mut disconnecting = negotiate(connect());
        disconnecting.write_all(&request(command::DISC, 1, 0, 0)).unwrap();
        assert_eq!(disconnecting.read(&mut [0; 1]).unwrap(), 0);
        good.write_all(&request(command::FLUSH, 9, 0, 0)).unwrap();
        assert_eq!(reply(&mut good), 9);
    });
}

#[test]
fn clients_that_stay_silent_do_not_keep_others_out() {
    with_timeout(Duration::from_secs(1), |connect| {
        let mut idle = negotiate(connect());
        let silent: Vec<_> = (0..MAX_CONNECTED).map(|_| connect()).collect();
        let mut late = negotiate(connect());
        late.write_all(&request(command::FLUSH, 9, 0, 0)).unwrap();
        assert_eq!(reply(&mut late), 9);
        drop(silent);
        idle.write_all(&request(command::FLUSH, 8, 0, 0)).unwrap();
        assert_eq!(reply(&mut idle), 8);
    });
}

#[test]
fn client_that_ended_its_session_without_taking_the_replies_is_disconnected() {
    with_timeout(Duration::from_secs(1), |connect| {
        let clients = (0..MAX_CONNECTED).map(|_| {
            let mut client = negotiate(connect());
            for n in 0..64 {
                client.write_all(&request(command::READ, n, 0, 1 << 16)).unwrap();
            }
            client.write_all(&request(command::DISC, 64, 0, 0)).unwrap();
            client
        });
        let clients: Vec<_> = clients.collect();
        negotiate(connect());
        drop(clients);
    });
}

#[test]
fn silent_clients_give_their_places_to_others() {
    with_timeout(Duration::from_secs(3600), |connect| {
        let _silent: Vec<UnixStream> = (0..2 * MAX_CONNECTED).map(|_| connect()).collect();
        let mut client = negotiate(connect());
        client.write_all(&request(command::READ, 1, 0, 512)).unwrap();
        assert_eq!(reply(&mut client), 1);
        // A client that has negotiated keeps its place.
        let _more: Vec<UnixStream> = (0..2 * MAX_CONNECTED).map(|_| connect()).collect();
        let _other = negotiate(connect());
        client.read_exact(&mut [0; 512]).unwrap();
        client.write_all(&request(command::READ, 2, 0, 512)).unwrap();
        assert_eq!(reply(&mut client), 2);
    });
}

#[test]
fn client_beyond_the_most_is_refused_with_the_number_and_served_once_another_has_left() {
    with_timeout(Duration::from_secs(1), |connect| {
        let mut clients: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| negotiate(connect())).collect();
        let mut late = connect();
        late.read_exact(&mut [0; 18]).unwrap();
        late.write_all(&3u32.to_be_bytes()).unwrap();
        let mut go = |expected: u32| {
            let mut option = b"IHAVEOPT".to_vec();
            option.extend(option::GO.to_be_bytes());
            option.extend([0, 0, 0, 6, 0, 0, 0, 0, 0, 0]);
            late.write_all(&option).unwrap();
            let mut header = [0; 20];
            late.read_exact(&mut header).unwrap();
            let [found, len] = [12, 16].map(|at| u32::from_be_bytes(*header[at..].first_chunk().unwrap()));
            assert_eq!(found, expected);
            let mut data = vec![0; len as usize];
            late.read_exact(&mut data).unwrap();
            data
        };
        let text = go(proto::reply::ERR_POLICY);
        assert_eq!(String::from_utf8(text).unwrap(), "64 clients have it open, which is the most");
        // Those that have it open are served.
        for client in &mut clients {
            client.write_all(&request(command::FLUSH, 9, 0, 0)).unwrap();
            assert_eq!(self::reply(client), 9);
        }
        let mut left = clients.pop().unwrap();
        left.write_all(&request(command::DISC, 10, 0, 0)).unwrap();
        assert_eq!(left.read(&mut [0; 1]).unwrap(), 0);
        go(proto::reply::INFO);
    });
}
