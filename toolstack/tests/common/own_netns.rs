//! A network namespace of the test program's own, so that no interface of the host is seen, used or in the way:
//! other machines of xpv and other tests have taps and bridges of the same names.
//!
//! It is entered before `main`, as only a program with one thread may make the user namespace by which an ordinary
//! user gets the right to make interfaces. All threads and child processes are in it then, however the program is
//! started. Each test program has this by `mod common`.
#![allow(unsafe_code)] // a function that the C library calls before `main`

use bridge::port::netdev;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{getgid, getuid, write};

// SAFETY: the section holds pointers to functions that are called once before `main`, with arguments that this one
// does not look at. It relies on nothing of Rust's runtime that `main` would set up.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = enter;

extern "C" fn enter() {
    // Root needs no user namespace, and keeps its rights over files without one.
    let entered = unshare(CloneFlags::CLONE_NEWNET).or_else(|_| as_root_of_its_own());
    if let Err(errno) = entered {
        eprintln!(
            "SKIPPED: tests with interfaces of their own: no network namespace can be made here ({errno})"
        );
        return;
    }
    netdev::set_up("lo").expect("the loopback interface is there in every namespace");
}

/// Enters a user namespace, where this user is root, and with it a network namespace.
fn as_root_of_its_own() -> nix::Result<()> {
    let user = getuid();
    let group = getgid();
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    // user_namespaces(7): an ordinary user may map its own group once setgroups(2) is out of reach.
    put("/proc/self/setgroups", "deny")?;
    put("/proc/self/uid_map", &format!("0 {user} 1"))?;
    put("/proc/self/gid_map", &format!("0 {group} 1"))
}

fn put(path: &str, text: &str) -> nix::Result<()> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match write(file, text.as_bytes())? {
        written if written == text.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}
