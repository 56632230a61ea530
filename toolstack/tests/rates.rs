//! Rates of interfaces that guests' own TCP and UDP get, on a machine of processes: never more than the rate, whatever the machine does, and
//! nothing for other guests to wait for. How exact they are is checked in virtual time (`bridge/src/rate_in`, `bridge/src/rate_limit`), and
//! on a machine with nothing else to do by `XPV_RATES=1`, or of one rate by `XPV_RATES=64Kb/s`, which
//! prints the table of `docs/limits.md`.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::netns::{Namespace, two_guests};
use common::program::run;
use common::{BOUND, Guard, Machine, eventually};

/// What is saved up at most, in seconds of the rate.
const BURST: f64 = 0.05;

/// Bytes and frames that a namespace's interface has received.
fn received(guest: &Namespace) -> [u64; 2] {
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", guest.pid())).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
    let mut fields = line.split_ascii_whitespace().map(|field| field.parse().unwrap());
    [(); 2].map(|()| fields.next().unwrap())
}

/// Bytes that have been received since, as TCP's were on a wire: in segments of 1,448 bytes, each with headers of Ethernet, IPv4 and TCP
/// with timestamps.
fn tcp_bytes(guest: &Namespace, [bytes, frames]: [u64; 2]) -> u64 {
    let [all_bytes, all_frames] = received(guest);
    let payload = (all_bytes - bytes).saturating_sub(66 * (all_frames - frames));
    payload + 66 * payload.div_ceil(1448)
}

/// Has `from` send to `to` by TCP for a time; returns the bytes that arrive on the wire and in what time.
fn stream(from: &Namespace, to: &Namespace, address: &str, time: Duration) -> (f64, f64) {
    let bound = address.to_owned();
    let listener = to.spawn(move || TcpListener::bind((bound, 0)).unwrap()).join().unwrap();
    let address = listener.local_addr().unwrap();
    let start = Instant::now();
    let before = received(to);
    let sender = from.spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let end = Instant::now() + time;
        while Instant::now() < end {
            let _ = stream.write(&[7; 16 << 10]);
        }
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let mut into = vec![0; 64 << 10];
    while start.elapsed() < time && stream.read(&mut into).unwrap() > 0 {}
    let bytes = tcp_bytes(to, before);
    let took = start.elapsed().as_secs_f64();
    drop(stream);
    sender.join().unwrap();
    (bytes as f64, took)
}

#[test]
fn guest_is_sent_no_more_than_its_rate_and_its_senders_reach_others() {
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine);
    let carol = Namespace::new();
    let cfg = machine.file("carol.cfg", "name='carol'\nvif=['mac=00:16:3e:00:00:03,rate-in=8Mb/s']\n");
    let netns = carol.pid().to_string();
    machine.ok(["create", "--netns", &netns, &cfg.display().to_string()]);
    carol.configure("10.77.0.3/24");
    // From the line on.
    let (bytes, time) = stream(&alice, &carol, "10.77.0.3", Duration::from_secs(2));
    assert!(bytes <= 1e6 * (time + BURST) + 1514.0, "{bytes} in {time} s");
    assert!(bytes >= 0.5e6 * time, "{bytes} in {time} s");
    // Live, and in packets: 100 a second of at most 1,514 bytes.
    machine.ok(["network-set", "carol", "0", "rate-in=", "rate-in-packets=100p/s"]);
    eventually("the rate is changed", || machine.log().contains("rate_in=5 packets in 50ms"));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| stream(&alice, &carol, "10.77.0.3", Duration::from_secs(2)));
        // The sender of the limited one is not held: 100 times as much goes to another.
        let (bytes, time) = stream(&alice, &bob, "10.77.0.2", Duration::from_secs(1));
        assert!(bytes >= 15e6 * time, "{bytes} in {time} s");
        let (bytes, time) = slow.join().unwrap();
        assert!(bytes <= 100.0 * 1514.0 * (time + BURST) + 1514.0, "{bytes} in {time} s");
    });
    machine.ok(["network-set", "carol", "0", "rate-in-packets="]);
    eventually("there is no rate", || machine.log().contains("rate_in=none\n"));
    let (bytes, time) = stream(&alice, &carol, "10.77.0.3", Duration::from_millis(500));
    assert!(bytes >= 2e6 * time, "{bytes} in {time} s");
}

/// What is measured: who is limited, by how much, and how it is sent.
struct Case {
    key: &'static str,
    rate: &'static str,
    bits: f64,
    arguments: &'static [&'static str],
    gso: bool,
}

#[test]
fn rates_are_exact() {
    let Ok(wanted) = std::env::var("XPV_RATES") else { return };
    let machine = Machine::new();
    let guests = two_guests(&machine);
    let mut inexact = Vec::new();
    let low = [("64Kb/s", 64e3), ("1Mb/s", 1e6), ("20Mb/s", 20e6), ("200Mb/s", 200e6)];
    let all = low.into_iter().chain([("1Gb/s", 1e9), ("2500Mb/s", 2.5e9)]);
    let rates = all.filter(|(rate, _)| wanted == "1" || wanted == *rate);
    let hows: [&[&str]; 3] = [&["-P1"], &["-P8"], &["-u", "-l", "1400", "-P1"]];
    println!("| key | rate | streams | segmentation | of the rate in 5 s |\n|---|---|---|---|---|");
    for gso in [true, false] {
        for key in ["rate", "rate-in"] {
            for (rate, bits) in rates.clone() {
                for arguments in hows {
                    // Two cores pass frames of 1,514 bytes up to about 2 Gbit/s.
                    if bits > 1e9 && (!gso || arguments[0] == "-u") {
                        continue;
                    }
                    let case = Case { key, rate, bits, arguments, gso };
                    if (gso || arguments[0] != "-u") && !measure(&machine, &guests, &case) {
                        inexact.push(format!("{key}={rate} {arguments:?} {gso}"));
                    }
                }
            }
        }
    }
    assert!(inexact.is_empty(), "{inexact:?}");
}

/// Measures a case and prints it; `true` if it is as exact as promised.
fn measure(machine: &Machine, [alice, bob]: &[Namespace; 2], case: &Case) -> bool {
    let limited = if case.key == "rate" { "alice" } else { "bob" };
    machine.ok(["network-set", "alice", "0", "rate="]);
    machine.ok(["network-set", "bob", "0", "rate-in="]);
    machine.ok(["network-set", limited, "0", &format!("{}={}", case.key, case.rate)]);
    let on = if case.gso { "on" } else { "off" };
    let mut offloads = alice.program("ethtool", "ethtool");
    offloads.args(["-K", "eth0", "tso", on, "gso", on, "gro", on]);
    run(&mut offloads);
    let mut server = bob.program("iperf3", "iperf3");
    server.args(["-s"]).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Guard(server.spawn().unwrap());
    let listens = || {
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp6", bob.pid())).unwrap();
        // Port 5201, and the state of who listens (proc_pid_net(5)).
        sockets.lines().any(|line| line.contains(":1451 ") && line.contains(" 0A "))
    };
    eventually("iperf3 listens", listens);
    let mut client = alice.program("iperf3", "iperf3");
    client.args(["-c", "10.77.0.2", "-t", "60"]).args(case.arguments).stdout(Stdio::null());
    if case.arguments[0] == "-u" {
        // More than the rate, and no more than the host sends.
        client.args(["-b", &format!("{}", (case.bits * 1.5).min(2e9))]);
    }
    let client = Guard(client.spawn().unwrap());
    // Once it is going.
    let from = received(bob)[0];
    eventually("it is going", || received(bob)[0] > from + 20_000);
    let (from, began) = (received(bob), Instant::now());
    eventually("five seconds", || began.elapsed() >= Duration::from_secs(5));
    let took = began.elapsed().as_secs_f64();
    let is_udp = case.arguments[0] == "-u";
    let bytes = if is_udp { received(bob)[0] - from[0] } else { tcp_bytes(bob, from) };
    drop(client);
    let fair = case.bits / 8.0 * took;
    // At low rates Linux sends frames of a few segments.
    let frame = if case.gso && case.key == "rate" { 11.0 * 1514.0 } else { 1514.0 };
    let share = bytes as f64 / fair;
    let segmentation = if case.gso { "offloaded" } else { "by the sender" };
    println!(
        "| `{}` | {} | {} | {segmentation} | {share:.3} |",
        case.key,
        case.rate,
        case.arguments.join(" ")
    );
    (bytes as f64 - fair).abs() <= (0.02 * fair).max(frame)
}
