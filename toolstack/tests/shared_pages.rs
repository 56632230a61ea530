//! A guest whose disks need more pages than it can grant: each has a share of its own, and requests wait for pages.

mod common;

use common::{Machine, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;
/// Commands in flight for each busy disk, 8 MiB in all: as many as the export takes from one client.
const DEPTH: u64 = 128;
/// Blocks of one command.
const BLOCKS: u64 = 16;
/// Busy disks. Each would fill its ring with 128 requests of 11 pages, of the guest's 16,384.
const BUSY: u8 = 13;

#[test]
fn busy_disks_leave_pages_to_an_idle_one_and_their_requests_wait() {
    let machine = Machine::new();
    let devs: Vec<String> = (0..=BUSY).map(|n| format!("xvd{}", char::from(b'a' + n))).collect();
    let disk = |dev: &String| {
        format!("'vdev={dev},target={}'", machine.image(&format!("{dev}.img"), 8 * MIB).display())
    };
    machine.create("web", &format!("disk=[{}]", devs.iter().map(disk).collect::<Vec<_>>().join(",")));
    let connect = |dev: &String| Nbd::connect(&machine.dir().join(format!("web/{dev}.nbd"))).unwrap();
    let mut clients: Vec<Nbd> = devs.iter().map(connect).collect();
    let (idle, busy) = clients.split_last_mut().unwrap();
    // dom0 is dead until all requests are made: xpv up starts no other one.
    let supervisor = Pid::from_raw(machine.supervisor());
    kill(supervisor, Signal::SIGSTOP).unwrap();
    machine.kill_dom0();
    eventually("dom0 is gone", || machine.pid("Domain-0").is_none());
    for (number, client) in (1..).zip(&mut *busy) {
        for command in 0..DEPTH {
            client.send_blocks(command * BLOCKS, &[number; BLOCK * BLOCKS as usize]).unwrap();
        }
    }
    idle.send_write(3, &[99; BLOCK]).unwrap();
    kill(supervisor, Signal::SIGCONT).unwrap();
    assert_eq!(idle.written().unwrap(), 3);
    assert_eq!(idle.read(3).unwrap(), [99; BLOCK]);
    for (number, client) in (1..).zip(busy) {
        for _ in 0..DEPTH {
            client.written().unwrap();
        }
        for block in [0, 1, DEPTH * BLOCKS - 1] {
            assert_eq!(client.read(block).unwrap(), [number; BLOCK]);
        }
    }
}
