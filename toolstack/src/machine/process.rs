//! Processes of this program: started by it, ended with it, or left to themselves.
#![allow(unsafe_code)] // pidfd_open has no wrapper in nix

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::dir::Dir;
use crate::error::{Error, Result};

/// What becomes of a process that we start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is killed when we end, however we end; it writes where we write.
    Ours,
    /// It goes on without us, in a session of its own, and writes into this file.
    Detached(PathBuf),
}

/// This program, to be run with further arguments on the machine in `dir`.
///
/// # Errors
/// It cannot find itself.
pub fn command(dir: &Dir, fate: &Fate) -> Result<Command> {
    // The file may have been replaced since: what runs is what runs now.
    let program = PathBuf::from("/proc/self/exe");
    let mut command = Command::new(program);
    command.arg0("xpv").arg("--dir").arg(dir.path()).stdin(Stdio::null());
    match fate {
        Fate::Ours => {
            command.arg("--die-with").arg(std::process::id().to_string());
        }
        Fate::Detached(log) => {
            let open = || File::options().create(true).append(true).open(log);
            let file = |e| Error::file(log, "opening the log", e);
            command.arg("--new-session").stdout(open().map_err(file)?).stderr(open().map_err(file)?);
        }
    }
    Ok(command)
}

/// Starts it.
///
/// # Errors
/// The system's.
pub fn spawn(mut command: Command) -> Result<Child> {
    command.spawn().map_err(|e| Error::io("starting a process of xpv", e))
}

/// A child that is killed when this is dropped.
#[derive(Debug)]
pub struct Owned(Option<Child>);

impl Owned {
    /// Takes it over.
    pub fn new(child: Child) -> Owned {
        Owned(Some(child))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// The system's.
    pub fn ended(&mut self) -> Result<Option<String>> {
        let Some(child) = &mut self.0 else { return Ok(None) };
        let status = child.try_wait().map_err(|e| Error::io("looking at a process", e))?;
        Ok(status.map(|s| s.to_string()))
    }

    /// Lets it go on without us.
    pub fn release(mut self) -> Option<Child> {
        self.0.take()
    }

    /// Asks it to end, and waits until it has: it is killed if it takes longer than `bound`.
    pub fn end(mut self, bound: std::time::Duration) {
        let Some(mut child) = self.0.take() else { return };
        let pid = Pid::from_raw(child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        if !exits_within(&mut child, bound) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

/// Whether a child ends in time; it is not reaped.
fn exits_within(child: &mut Child, bound: std::time::Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let Ok(pidfd) = pidfd(child.id()) else { return matches!(child.try_wait(), Ok(Some(_))) };
    let timeout = PollTimeout::try_from(bound).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// A descriptor that is readable once the process has ended.
fn pidfd(pid: u32) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: takes two numbers and gives a new descriptor or -1.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
    let fd = nix::errno::Errno::result(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Ends this process when its parent does: the kernel is asked to, and the parent may be gone already.
///
/// # Errors
/// It is.
pub fn die_with(parent: u32) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|e| Error::io("tying this process to its parent", e))?;
    if nix::unistd::getppid().as_raw().cast_unsigned() != parent {
        return Err(Error::other("the process that started this one is gone"));
    }
    Ok(())
}

/// Leaves the session of the terminal that we were started from.
///
/// # Errors
/// The system's.
pub fn new_session() -> Result<()> {
    nix::unistd::setsid().map(drop).map_err(|e| Error::io("starting a session", e))
}

/// Kills a process; one that is gone is fine.
///
/// # Errors
/// It is not ours to kill.
pub fn kill_now(pid: u32) -> Result<()> {
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(e) => Err(Error::io(format!("killing process {pid}"), e)),
    }
}

/// A flag that SIGINT, SIGTERM and SIGHUP set instead of ending the process; the second one ends it.
///
/// # Errors
/// The system's.
pub fn interrupted() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .map_err(|e| Error::io("handling signals", e))?;
    }
    Ok(flag)
}

/// Waits until the descriptor is readable, or the flag is set.
///
/// # Errors
/// The system's.
pub fn wait_for(what: &impl std::os::fd::AsFd, flag: &AtomicBool) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // A signal may come just before the poll: the flag is looked at again after each slice.
    let slice = PollTimeout::from(200u8);
    while !flag.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(what.as_fd(), PollFlags::POLLIN)], slice) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(Error::io("waiting", e)),
        }
    }
    Ok(())
}

/// Waits until one of the descriptors is readable.
///
/// # Errors
/// The system's.
pub fn wait_any(what: &[std::os::fd::BorrowedFd<'_>]) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds: Vec<PollFd<'_>> = what.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            done => return done.map(drop).map_err(|e| Error::io("waiting", e)),
        }
    }
}

/// Fails once the flag is set.
///
/// # Errors
/// It is.
pub fn go_on(flag: &AtomicBool) -> Result<()> {
    if flag.load(Ordering::Relaxed) { Err(Error::other("interrupted")) } else { Ok(()) }
}

/// A stream that becomes readable when the process is asked to end.
///
/// # Errors
/// The system's.
pub fn stop_signal() -> Result<std::os::unix::net::UnixStream> {
    let (ours, theirs) =
        std::os::unix::net::UnixStream::pair().map_err(|e| Error::io("making a pair of sockets", e))?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let end = theirs.try_clone().map_err(|e| Error::io("copying a descriptor", e))?;
        signal_hook::low_level::pipe::register(signal, end).map_err(|e| Error::io("handling signals", e))?;
    }
    Ok(ours)
}

/// The program of a package, or the error that it is not installed. It is looked for in `PATH` and the folders of
/// the administrator's programs.
///
/// # Errors
/// [`Error::NotInstalled`].
pub fn program(name: &'static str, package: &'static str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or(Error::NotInstalled { program: name, package })
}
