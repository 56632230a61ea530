//! Processes of this program: started by it, ended with it, or left to themselves.
#![allow(unsafe_code)] // pidfd_open has no wrapper in nix

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM};

use crate::dir::Dir;
use crate::error::{Error, Result};

/// What becomes of a process that we start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// It is killed when we end, however we end; otherwise it goes on without us, in a session of its own.
    pub ours: bool,
    /// The file that it writes into; where we write when there is none.
    pub log: Option<PathBuf>,
}

/// This program, to be run with further arguments on the machine in `dir`.
///
/// # Errors
/// The log cannot be opened.
pub fn command(dir: &Dir, fate: &Fate) -> Result<Command> {
    // The file may have been replaced since: what runs is what runs now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("xpv").arg("--dir").arg(dir.path()).stdin(Stdio::null());
    match fate.ours {
        true => command.arg("--die-with").arg(std::process::id().to_string()),
        false => command.arg("--new-session"),
    };
    if let Some(log) = &fate.log {
        let open = || File::options().create(true).append(true).open(log);
        let failed = |e| Error::file(log, "opening the log", e);
        command.stdout(open().map_err(failed)?).stderr(open().map_err(failed)?);
    }
    Ok(command)
}

/// Starts it.
///
/// # Errors
/// The system's.
pub fn spawn(mut command: Command) -> Result<Owned> {
    command.spawn().map(|child| Owned(Some(child))).map_err(|e| Error::io("starting a process of xpv", e))
}

/// Starts a process that says `ready` on its standard output once it is, and waits until it does.
///
/// # Errors
/// It ends before, or does not say so in time.
pub fn spawn_ready(mut command: Command, what: &str, bound: Duration) -> Result<Owned> {
    command.stdout(Stdio::piped());
    let mut process = spawn(command)?;
    let Some(output) = process.0.as_mut().and_then(|child| child.stdout.take()) else { return Ok(process) };
    let deadline = Instant::now() + bound;
    let mut said = Vec::new();
    while !said.contains(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(Error::Other(format!("{what} is not ready after {} s", bound.as_secs()))),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(Error::io("waiting", e)),
        }
        let mut bytes = [0; 64];
        match nix::unistd::read(&output, &mut bytes) {
            Ok(0) => return Err(Error::Other(format!("{what} ended before it was ready"))),
            Ok(len) => said.extend_from_slice(&bytes[..len]),
            Err(e) => return Err(Error::io("reading from a process", e)),
        }
    }
    Ok(process)
}

/// Says that we are ready, for [`spawn_ready`] and for scripts.
pub fn say_ready() {
    // Whoever started us may not listen.
    let _ = writeln!(std::io::stdout(), "ready");
}

/// A child that is killed when this is dropped.
#[derive(Debug)]
pub struct Owned(Option<Child>);

impl Owned {
    /// Its standard input and output, where they are pipes.
    pub fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        let child = self.0.as_mut()?;
        Some((child.stdin.take()?, child.stdout.take()?))
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
    pub fn release(mut self) {
        drop(self.0.take());
    }

    /// A descriptor that is readable once it has ended; `None` when it is gone altogether.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        self.0.as_ref().and_then(|child| pidfd(child.id()).ok())
    }

    /// Asks it to end; does not wait.
    pub fn ask_to_end(&mut self) {
        let Some(child) = &mut self.0 else { return };
        // One that was reaped has a number that may be somebody else's by now.
        if matches!(child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        }
    }

    /// Waits until it ends by itself, no longer than `bound`; `false` if it had not by then.
    pub fn wait(&mut self, bound: Duration) -> bool {
        self.0.as_mut().is_none_or(|child| ends_within(child.id(), bound))
    }

    /// Asks it to end, and waits until it has: it is killed if it takes longer than `bound`.
    pub fn end(mut self, bound: Duration) {
        self.ask_to_end();
        let Some(mut child) = self.0.take() else { return };
        if !ends_within(child.id(), bound) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

/// Whether a process ends in time, or has ended; a child is not reaped.
pub fn ends_within(pid: u32, bound: Duration) -> bool {
    // It cannot be had of one that is gone.
    let Ok(pidfd) = pidfd(pid) else { return true };
    let timeout = PollTimeout::try_from(bound).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// A descriptor that is readable once the process has ended.
fn pidfd(pid: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: takes two numbers and gives a new descriptor or -1.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
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
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
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
pub fn wait_for(what: &impl AsFd, flag: &AtomicBool) -> Result<()> {
    // A signal may come just before the poll: the flag is looked at again after each slice.
    let slice = PollTimeout::from(200u8);
    while !flag.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(what.as_fd(), PollFlags::POLLIN)], slice) {
            Ok(0) | Err(Errno::EINTR) => {}
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
pub fn wait_any(what: &[BorrowedFd<'_>]) -> Result<()> {
    let mut fds: Vec<PollFd<'_>> = what.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop).map_err(|e| Error::io("waiting", e)),
        }
    }
}

/// Waits until one of the descriptors is readable or the time is over; whether the first one is readable.
///
/// # Errors
/// The system's.
pub fn wait_first(what: &[BorrowedFd<'_>], timeout: PollTimeout) -> Result<bool> {
    let mut fds: Vec<PollFd<'_>> = what.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds.first().and_then(PollFd::any).unwrap_or(false)),
        Err(e) => Err(Error::io("waiting", e)),
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

/// The program of a package, or the error that it is not installed. It is looked for in `PATH` and the directories of
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

/// Whether a process was killed and only the kernel is still busy with it, which takes long on a busy machine.
pub fn is_ending(pid: u32) -> bool {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let flags = read("stat").as_deref().and_then(flags);
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
        || read("status").is_some_and(|status| kill_is_pending(&status))
}

/// Linux's mark of a process that is ending or has ended (include/linux/sched.h).
const PF_EXITING: u32 = 4;

/// The flags in `/proc/PID/stat`, its ninth field.
fn flags(stat: &str) -> Option<u32> {
    // The name, in parentheses, may hold anything; the third field follows its end.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(9 - 3)?.parse().ok()
}

/// Whether `/proc/PID/status` says that SIGKILL was sent and not yet taken, to the process or its first thread.
fn kill_is_pending(status: &str) -> bool {
    let sets = ["ShdPnd:", "SigPnd:"].map(|key| status.lines().find_map(|line| line.strip_prefix(key)));
    let killed =
        |set: &str| u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & 1 << (SIGKILL - 1) != 0);
    sets.into_iter().flatten().any(killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_ending_from_the_first_moment() {
        assert!(!is_ending(std::process::id()));
        for _ in 0..20 {
            let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            assert!(!is_ending(child.id()));
            child.kill().unwrap();
            let ending = is_ending(child.id());
            child.wait().unwrap();
            assert!(ending);
        }
    }

    #[test]
    fn a_process_ends_once_it_has() {
        let instant = Duration::from_millis(1);
        assert!(!ends_within(std::process::id(), instant));
        let mut child = Command::new("true").spawn().unwrap();
        assert!(ends_within(child.id(), Duration::from_secs(20)));
        child.wait().unwrap();
        assert!(ends_within(child.id(), instant));
    }
}
