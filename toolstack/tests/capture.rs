//! Captures of a vif's frames, read by tshark and capinfos.

mod common;

use common::netns::{Namespace, two_guests};
use common::program::{program, run};
use common::{Guard, Machine, command, eventually, texts};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A capture that runs, and its file.
fn start(machine: &Machine, file: &Path, arguments: &[&str]) -> Guard {
    let mut capture = command(&machine.dir());
    let file_text = file.display().to_string();
    capture.args(["network-capture", "alice", "0", "-w", &file_text]).args(arguments);
    let capture = Guard(capture.spawn().unwrap());
    // It has the interface's description once frames are captured.
    eventually("the capture runs", || std::fs::metadata(file).is_ok_and(|file| file.len() > 0));
    capture
}

/// Ends a capture as Ctrl-C does.
fn stop(capture: Guard) {
    kill(Pid::from_raw(capture.0.id() as i32), Signal::SIGINT).unwrap();
    ends(capture);
}

/// Waits until a capture has ended.
fn ends(mut capture: Guard) {
    let mut status = None;
    eventually("the capture ends", || {
        status = capture.0.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
}

/// Has three pings answered.
fn ping(alice: &Namespace) {
    run(alice.program("ping", "iputils-ping").args(["-c", "3", "-i", "0.05", "-W", "10", "10.77.0.2"]));
}

/// These fields of all frames.
fn frames(file: &Path, fields: &[&str]) -> Vec<String> {
    let mut tshark = program("tshark", "tshark");
    tshark.args(["-n", "-r"]).arg(file).args(["-T", "fields"]);
    for field in fields {
        tshark.args(["-e", field]);
    }
    run(&mut tshark).lines().map(str::to_owned).collect()
}

/// What capinfos says: a table's row.
fn capinfos(file: &Path) -> String {
    run(program("capinfos", "tshark").args(["-T", "-m", "-r", "-t", "-E", "-c", "-n"]).arg(file))
}

/// Sends so many bytes from alice to bob.
fn send(alice: &Namespace, bob: &Namespace, bytes: usize) {
    let listener = bob.spawn(|| TcpListener::bind("10.77.0.2:5000").unwrap()).join().unwrap();
    let sender = alice.spawn(move || {
        let mut stream = TcpStream::connect("10.77.0.2:5000").unwrap();
        stream.write_all(&vec![7; bytes]).unwrap();
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert_eq!(received.len(), bytes);
}

#[test]
fn frames_both_ways_are_captured_with_what_their_sender_left_undone() {
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine);
    let file = machine.path("all.pcapng");
    let capture = start(&machine, &file, &["--host", "10.77.0.1"]);
    ping(&alice);
    send(&alice, &bob, 1 << 20);
    stop(capture);
    let table = capinfos(&file);
    assert!(table.contains("pcapng,ether,"), "{table}");
    // Type 8 is a request, which the guest has sent: direction 1.
    let icmp = frames(&file, &["icmp.type", "frame.packet_flags_direction", "frame.interface_name"]);
    let count = |line: &str| icmp.iter().filter(|found| *found == line).count();
    let [requests, replies] = [count("8\t0x00000001\tvif1.0"), count("0\t0x00000002\tvif1.0")];
    assert_eq!([requests, replies], [3, 3], "{icmp:?}");
    let comments = frames(&file, &["frame.comment", "frame.len"]);
    let has = |text: &str| comments.iter().any(|comment| comment.contains(text));
    assert!(has("GSO TCPv4: segments of 1448 bytes") && has("checksum not filled in: start 34, offset 16"));
    let lengths = comments.iter().filter_map(|line| line.rsplit('\t').next()?.parse::<u32>().ok());
    assert!(lengths.max().unwrap() > 1514, "offloads are written as what they are");
}

#[test]
fn frames_are_chosen_by_type_port_and_number_and_shortened() {
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine);
    let [arp, tcp, few] = ["arp", "tcp", "few"].map(|name| machine.path(&format!("{name}.pcapng")));
    let captures = [
        start(&machine, &arp, &["--ether-type", "arp"]),
        start(&machine, &tcp, &["--port", "5000", "--snaplen", "60"]),
    ];
    let counted = start(&machine, &few, &["-c", "4"]);
    ping(&alice);
    send(&alice, &bob, 100_000);
    ends(counted);
    captures.into_iter().for_each(stop);
    assert_eq!(frames(&few, &["frame.number"]).len(), 4);
    assert!(frames(&arp, &["eth.type"]).iter().all(|found| found == "0x0806"));
    let ports = frames(&tcp, &["tcp.port", "frame.cap_len"]);
    assert!(ports.len() > 5 && ports.iter().all(|found| found.contains("5000")), "{ports:?}");
    assert!(ports.iter().all(|found| found.ends_with("\t60") || found.ends_with("\t54")), "{ports:?}");
}

#[test]
fn reader_that_stops_loses_records_and_the_guest_no_frame() {
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine);
    let mut socket = UnixStream::connect(machine.dir().join("control.sock")).unwrap();
    socket.write_all(b"{\"version\":1,\"command\":\"capture\",\"domid\":1,\"devid\":0}\n").unwrap();
    let drops = || {
        let list: Value = serde_json::from_str(&machine.ok(["network-list", "alice", "--json"])).unwrap();
        list[0]["stats"]["drops"].clone()
    };
    ping(&alice);
    let before = drops();
    send(&alice, &bob, 16 << 20);
    assert_eq!(drops(), before);
    // What it reads later is whole.
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).unwrap();
    let reply = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    assert_eq!(bytes[..reply], *b"{\"ok\":{\"port\":\"vif1.0\"},\"version\":1}");
    let file = machine.path("slow.pcapng");
    std::fs::write(&file, &bytes[reply + 1..]).unwrap();
    let captured = frames(&file, &["frame.number"]).len();
    assert!(captured > 6, "{captured}");
    let mut statistics = program("tshark", "tshark");
    let statistics = run(statistics.args(["-n", "-V", "-c", "1", "-r"]).arg(&file));
    assert!(statistics.contains("Interface name: vif1.0"), "{statistics}");
    assert!(isb_drops(&bytes[reply + 1..]) > 0, "records were left out");
    ping(&alice);
}

/// The frames left out, as the last block says (`isb_ifdrop`).
fn isb_drops(pcapng: &[u8]) -> u64 {
    let u32_at = |at: usize| u32::from_le_bytes(pcapng[at..at + 4].try_into().unwrap());
    let mut at = 0;
    let mut last = 0;
    while at < pcapng.len() {
        last = at;
        at += u32_at(at + 4) as usize;
    }
    assert_eq!((at, u32_at(last)), (pcapng.len(), 5), "whole blocks, of which the last has statistics");
    let mut option = last + 20;
    loop {
        let [code, len] =
            [0, 2].map(|part| u16::from_le_bytes(pcapng[option + part..][..2].try_into().unwrap()));
        if code == 5 {
            return u64::from_le_bytes(pcapng[option + 4..][..8].try_into().unwrap());
        }
        assert_ne!(code, 0, "no isb_ifdrop");
        option += 4 + usize::from(len).next_multiple_of(4);
    }
}

#[test]
fn capture_ends_with_its_interface_and_goes_down_a_pipe() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    let mut capture = command(&machine.dir());
    capture.args(["network-capture", "alice", "0"]).stdout(Stdio::piped());
    let mut capture = Guard(capture.spawn().unwrap());
    let mut output = capture.0.stdout.take().unwrap();
    let mut start = [0; 4];
    output.read_exact(&mut start).unwrap();
    assert_eq!(start, [0x0a, 0x0d, 0x0d, 0x0a], "a section header");
    ping(&alice);
    machine.ok(["network-detach", "alice", "0"]);
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    ends(capture);
    assert!(rest.len() > 6 * 98);
}

#[test]
fn what_cannot_be_captured_is_an_error_that_says_so() {
    let machine = Machine::new();
    let _guests = two_guests(&machine);
    let file = machine.path("none.pcapng").display().to_string();
    let fails = |arguments: &[&str]| {
        let output = machine.xpv(["network-capture"].iter().chain(arguments));
        assert!(!output.status.success());
        texts(&output).1
    };
    assert!(fails(&["alice", "7", "-w", &file]).contains("alice has no vif 7"));
    assert!(fails(&["carol", "0", "-w", &file]).contains("carol"));
    let error = fails(&["alice", "0", "-w", &file, "--host", "10.77.0"]);
    assert!(error.contains("found \"10.77.0\", expected a MAC or an IP address"), "{error}");
    let error = fails(&["alice", "0", "-w", &file, "--ether-type", "ipx"]);
    assert!(error.contains("found \"ipx\", expected arp"), "{error}");
    let error = fails(&["alice", "0", "-w", "/nowhere/file"]);
    assert!(error.contains("/nowhere/file"), "{error}");
    assert!(!Path::new(&file).exists());
}
