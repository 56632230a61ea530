//! A network namespace for the test program, so that it neither uses nor conflicts with interfaces of the host: other
//! machines of xpv and other tests have taps and bridges of the same names.
//!
//! The program enters it before `main`: an ordinary user needs a new user namespace to get the right to create
//! interfaces, and only a process with one thread may enter one. All its threads and child processes are in the
//! namespace. Each test program includes this by `mod common`.
#![allow(unsafe_code)] // A function that the C library calls before `main`.

use bridge::port::netdev;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{getgid, getuid, write};

// SAFETY: the section holds pointers to functions that are called once before `main`, with arguments that this one
// ignores. It uses nothing that Rust's runtime sets up before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = enter;

extern "C" fn enter() {
    // Root needs no user namespace, and would lose its rights over files in one.
    let entered = unshare(CloneFlags::CLONE_NEWNET).or_else(|_| unshare_as_root());
    if let Err(errno) = entered {
        eprintln!("SKIPPED: tests in their own network namespace: none can be created here ({errno})");
        return;
    }
    netdev::set_up("lo").expect("every namespace has a loopback interface");
}

/// Enters a new user namespace, in which this user is root, and a new network namespace.
fn unshare_as_root() -> nix::Result<()> {
    let user = getuid();
    let group = getgid();
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    // user_namespaces(7): an ordinary user may map its own group once setgroups(2) is denied.
    write_file("/proc/self/setgroups", "deny")?;
    write_file("/proc/self/uid_map", &format!("0 {user} 1"))?;
    write_file("/proc/self/gid_map", &format!("0 {group} 1"))
}

fn write_file(path: &str, text: &str) -> nix::Result<()> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match write(file, text.as_bytes())? {
        written if written == text.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}
