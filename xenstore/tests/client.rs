//! The client against a scripted store: late, wrong and hostile replies.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use ring_abi::xs_wire::{Header, MessageType};
use xenstore::wire::Message;
use xenstore::{Client, Error, Nodes};

/// A client, and a thread that runs `script` as its store.
fn scripted(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> (Client, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    (Client::new(ours), std::thread::spawn(move || script(&mut theirs)))
}

fn request(stream: &mut UnixStream) -> Message {
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes).unwrap();
    let header = Header::from_bytes(&bytes);
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload).unwrap();
    Message { header, payload }
}

fn reply(to: &Message, kind: MessageType, payload: &[u8]) -> Vec<u8> {
    Message::new(kind, to.header.req_id, to.header.tx_id, payload.to_vec()).to_bytes()
}

fn event(path: &str) -> Vec<u8> {
    Message::new(MessageType::WatchEvent, 0, 0, format!("{path}\0t\0").into_bytes()).to_bytes()
}

#[test]
fn events_between_replies_are_queued_in_order() {
    let (mut client, store) = scripted(|stream| {
        let read = request(stream);
        let all = [event("/a"), event("/b"), reply(&read, MessageType::Read, b"v"), event("/c")].concat();
        // A stream does not preserve the boundaries of messages.
        for part in all.chunks(7) {
            stream.write_all(part).unwrap();
        }
    });
    assert_eq!(client.read("/x").unwrap(), b"v");
    for path in ["/a", "/b", "/c"] {
        assert_eq!(client.wait_event(None).unwrap().unwrap().path, path);
    }
    assert!(matches!(client.wait_event(None), Err(Error::Closed)));
    store.join().unwrap();
}

#[test]
fn transaction_beyond_the_domains_number_of_them_is_waited_for() {
    let (mut client, store) = scripted(|stream| {
        for _ in 0..3 {
            let start = request(stream);
            stream.write_all(&reply(&start, MessageType::Error, b"ENOSPC\0")).unwrap();
        }
        let start = request(stream);
        stream.write_all(&reply(&start, MessageType::TransactionStart, b"7\0")).unwrap();
        let end = request(stream);
        assert_eq!((end.header.tx_id, end.payload.as_slice()), (7, &b"T\0"[..]));
        stream.write_all(&reply(&end, MessageType::TransactionEnd, b"OK\0")).unwrap();
    });
    client.transaction(|_| Ok(())).unwrap();
    store.join().unwrap();
}

#[test]
fn late_reply_is_not_taken_for_the_next_requests() {
    let (mut client, store) = scripted(|stream| {
        let first = request(stream);
        let second = request(stream);
        assert_ne!(first.header.req_id, second.header.req_id);
        stream.write_all(&reply(&first, MessageType::Read, b"late")).unwrap();
        stream.write_all(&reply(&second, MessageType::Read, b"in time")).unwrap();
    });
    client.set_reply_timeout(Some(Duration::from_millis(1)));
    assert!(matches!(client.read("/x"), Err(Error::TimedOut { .. })));
    client.set_reply_timeout(None);
    assert_eq!(client.read("/x").unwrap(), b"in time");
    store.join().unwrap();
}

#[test]
fn several_requests_are_sent_before_the_first_reply_and_answered_in_any_order() {
    let (mut client, store) = scripted(|stream| {
        // More than are sent at once.
        for window in [16, 4] {
            let mut requests: Vec<Message> = (0..window).map(|_| request(stream)).collect();
            requests.reverse();
            for read in requests {
                let path = String::from_utf8_lossy(&read.payload).into_owned();
                let reply = match path.as_str() {
                    "/7\0" => reply(&read, MessageType::Error, b"ENOENT\0"),
                    _ => reply(&read, MessageType::Read, path.trim_matches(['/', '\0']).as_bytes()),
                };
                stream.write_all(&reply).unwrap();
            }
        }
    });
    let paths: Vec<String> = (0..20).map(|number| format!("/{number}")).collect();
    for (number, value) in client.read_each(&paths).unwrap().into_iter().enumerate() {
        match value {
            Err(error) => assert!(number == 7 && error.is_not_found()),
            Ok(value) => assert_eq!(value, number.to_string().as_bytes()),
        }
    }
    assert!(matches!(client.read_each(&["/x".into()]), Err(Error::Closed)));
    store.join().unwrap();
}

#[test]
fn no_event_before_the_timeout_is_no_error() {
    let (mut client, store) = scripted(|stream| assert_eq!(stream.read(&mut [0]).unwrap(), 0));
    assert_eq!(client.poll_event().unwrap(), None);
    assert_eq!(client.wait_event(Some(Duration::from_millis(1))).unwrap(), None);
    drop(client);
    store.join().unwrap();
}

#[test]
fn malformed_replies_are_protocol_errors() {
    let (mut client, store) = scripted(|stream| {
        let first = request(stream);
        stream.write_all(&reply(&first, MessageType::Write, b"OK\0")).unwrap();
        let second = request(stream);
        stream.write_all(&reply(&second, MessageType::Error, b"EWHATEVER\0")).unwrap();
        let _third = request(stream);
        stream.write_all(&Header { kind: 2, req_id: 3, tx_id: 0, len: 5000 }.to_bytes()).unwrap();
    });
    for _ in 0..3 {
        assert!(matches!(client.read("/x"), Err(Error::Protocol(_))));
    }
    store.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn calls_return_whatever_bytes_are_received(
        bytes in vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>(), 2 => 0..24u8], 0..600),
    ) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours);
        theirs.write_all(&bytes).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = client.directory("/x");
        let _ = client.get_perms("/x");
        while let Ok(Some(_)) = client.poll_event() {}
    }
}
