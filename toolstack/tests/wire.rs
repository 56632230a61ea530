//! A wire of dom0's between a host's interface and one vif: every frame passes, and a guest whose pages are flipped has them read
//! into its pages.

mod common;

use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::netns::Namespace;
use common::program::run;
use common::{BOUND, Machine, eventually};

const HOST: &str = "[[bridges]]\nname = 'up'\nports = ['tap:host0']\nwire = true\n\
                    [[bridges]]\nname = 'link'\nports = ['packet:far0']\nwire = true\n";

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')));
}

/// A guest with a vif on each wire, in a namespace of its own.
fn guest(machine: &Machine, rx: &str) -> Namespace {
    let namespace = Namespace::new();
    let text = "name='g'\nvif=['mac=00:16:3e:00:00:01,bridge=up,mtu=9000',\
                'mac=00:16:3e:00:00:02,bridge=link,mtu=9000']\n";
    let cfg = machine.file("g.cfg", text);
    let netns = namespace.pid().to_string();
    machine.ok(["create", "--netns", &netns, "--rx", rx, &cfg.display().to_string()]);
    for (n, interface) in ["eth0", "eth1"].into_iter().enumerate() {
        let address = format!("10.7{n}.0.2/24");
        run(namespace.program("ip", "iproute2").args(["address", "add", &address, "dev", interface]));
        run(namespace.program("ip", "iproute2").args(["link", "set", interface, "up"]));
    }
    namespace
}

fn count(machine: &Machine, vif: usize, name: &str) -> u64 {
    let list: serde_json::Value = serde_json::from_str(&machine.ok(["network-list", "g", "--json"])).unwrap();
    list[vif]["stats"]["grants"][name].as_u64().unwrap()
}

/// Sends datagrams of that length until one arrives, and checks it.
fn datagrams_arrive(guest: &Namespace, net: u8, len: usize) {
    let receiver =
        guest.spawn(move || UdpSocket::bind((format!("10.7{net}.0.2"), 0)).unwrap()).join().unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let sender = UdpSocket::bind((format!("10.7{net}.0.1"), 0)).unwrap();
    let to = receiver.local_addr().unwrap();
    let deadline = Instant::now() + BOUND;
    let sent: Vec<u8> = (0..len).map(|n| ((n * 7) >> 3) as u8).collect();
    let mut into = vec![0; len + 1];
    let mut arrived = 0;
    while arrived < 20 {
        assert!(Instant::now() < deadline, "{arrived} datagrams of {len} bytes");
        let _ = sender.send_to(&sent, to);
        let Ok(received) = receiver.recv(&mut into) else { continue };
        assert!(into[..received] == sent, "a datagram of {len} bytes changed");
        arrived += 1;
    }
}

#[test]
fn wires_of_a_tap_and_a_packet_socket_carry_frames_into_flipped_pages() {
    ip("link add near0 mtu 9000 type veth peer name far0 mtu 9000");
    ip("address add 10.71.0.1/24 dev near0");
    ip("link set near0 up");
    for rx in ["flip", "copy"] {
        let machine = Machine::with(HOST);
        ip("link set host0 mtu 9000");
        ip("address add 10.70.0.1/24 dev host0");
        let namespace = guest(&machine, rx);
        for (vif, net) in [(0, 0), (1, 1)] {
            for len in [20, 1400, 8900, 60_000] {
                datagrams_arrive(&namespace, net, len);
            }
            let ping = ["-c", "3", "-i", "0.2", "-W", "5", &format!("10.7{net}.0.1")].map(str::to_owned);
            let stdout = run(namespace.program("ping", "iputils-ping").args(ping));
            assert!(stdout.contains(" 0% packet loss"), "{stdout}");
            let direct = count(&machine, vif, "direct");
            let flipped = count(&machine, vif, "flipped");
            match rx {
                "flip" => assert!(direct > 100 && direct <= flipped, "{direct} of {flipped} pages"),
                _ => assert_eq!((direct, flipped), (0, 0)),
            }
            assert_eq!(count(&machine, vif, "refused"), 0);
        }
    }
}

#[test]
fn second_vif_on_a_wire_is_refused_with_its_name() {
    let machine = Machine::with("[[bridges]]\nname = 'w'\nports = ['tap:host1']\nwire = true\n");
    let first = machine.file("a.cfg", "name='a'\nvif=['bridge=w']\n");
    machine.ok(["create", &first.display().to_string()]);
    let second = machine.file("b.cfg", "name='b'\nvif=['bridge=w']\n");
    let error = machine.fails(["create", &second.display().to_string()]);
    assert!(error.contains("all of its 2 ports"), "{error}");
    // Once the first one has gone there is an end for it.
    machine.ok(["destroy", "a"]);
    eventually("the wire has a free end", || {
        machine.xpv(["create", &second.display().to_string()]).status.success()
    });
}

#[test]
fn wire_without_exactly_one_port_is_refused() {
    for (arguments, expected) in [
        (["dom0", "--wire", "w"], "expected NAME=PORT: one port"),
        (["dom0", "--wire", "w=tap:a,tap:b"], "expected NAME=PORT: one port"),
        (["dom0", "--wire", "w=eth0"], "expected tap:NAME or packet:NAME"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xpv"));
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(expected), "{error}");
    }
}
