//! Child processes that run this program, and signals to this process.
#![allow(unsafe_code)] // pidfd_open and pidfd_send_signal have no wrappers in nix

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGXFSZ};

use crate::dir::Dir;
use crate::error::{Error, Result};

/// How a child process is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessOptions {
    /// Whether the kernel kills the child when this process exits; otherwise it runs in a session of its own.
    pub die_with_parent: bool,
    /// The file for the child's output; it inherits this process's output if `None`.
    pub log: Option<PathBuf>,
}

/// Returns a command that runs this program on the machine in `dir`; the caller adds arguments.
///
/// # Errors
/// [`Error::File`] if the log cannot be opened.
pub fn command(dir: &Dir, options: &ProcessOptions) -> Result<Command> {
    // Not the path of the executable, which may have been replaced since: the child runs the same version.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("xpv").arg("--dir").arg(dir.path()).stdin(Stdio::null());
    match options.die_with_parent {
        true => command.arg("--die-with").arg(std::process::id().to_string()),
        false => command.arg("--new-session"),
    };
    if let Some(log) = &options.log {
        let open = || File::options().create(true).append(true).open(log);
        let failed = |e| Error::file(log, "opening the log", e);
        command.stdout(open().map_err(failed)?).stderr(open().map_err(failed)?);
    }
    Ok(command)
}

/// Gives this process the program's name, which one that was started by [`command`] would not have: others show it, as in "in use by".
pub fn set_name() {
    let _ = std::fs::write("/proc/self/comm", "xpv");
}

/// Starts a child process.
pub fn spawn(mut command: Command) -> Result<ChildProcess> {
    command
        .spawn()
        .map(|child| ChildProcess(Some(child)))
        .map_err(|e| Error::io("starting a process of xpv", e))
}

/// Starts a child process and waits until it has called [`report_ready`].
///
/// # Errors
/// [`Error::Other`] if it exits before, or the timeout expires.
pub fn spawn_ready(mut command: Command, what: &str, timeout: Duration) -> Result<ChildProcess> {
    command.stdout(Stdio::piped());
    let mut process = spawn(command)?;
    let Some(output) = process.0.as_mut().and_then(|child| child.stdout.take()) else { return Ok(process) };
    let deadline = Instant::now() + timeout;
    let mut received = Vec::new();
    while !received.contains(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(Error::Other(format!("{what} is not ready after {} s", timeout.as_secs()))),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(Error::io("waiting", e)),
        }
        let mut bytes = [0; 64];
        match nix::unistd::read(&output, &mut bytes) {
            Ok(0) => {
                // It may have closed its output only.
                process.wait(Duration::from_secs(1));
                let status = process.exit_status()?.map_or(String::new(), |status| format!(": {status}"));
                return Err(Error::Other(format!("{what} exited before it was ready{status}")));
            }
            Ok(len) => received.extend_from_slice(&bytes[..len]),
            Err(e) => return Err(Error::io("reading from a process", e)),
        }
    }
    Ok(process)
}

/// Writes `ready` to standard output, for [`spawn_ready`] and for scripts.
pub fn report_ready() {
    // The reader may have closed the pipe.
    let _ = writeln!(std::io::stdout(), "ready");
}

/// A child process, which is killed when this is dropped.
#[derive(Debug)]
pub struct ChildProcess(Option<Child>);

impl ChildProcess {
    /// Takes the child's standard input and output, if both are pipes.
    pub fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        let child = self.0.as_mut()?;
        Some((child.stdin.take()?, child.stdout.take()?))
    }

    /// Returns the child's exit status as text; `None` while it runs.
    pub fn exit_status(&mut self) -> Result<Option<String>> {
        Ok(self.ended()?.map(|status| status.to_string()))
    }

    /// Returns how the child has ended; `None` while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.0 else { return Ok(None) };
        child.try_wait().map_err(|e| Error::io("waiting for a process", e))
    }

    /// Lets the child run on after this process exits.
    pub fn detach(mut self) {
        drop(self.0.take());
    }

    /// Returns a descriptor that is readable once the child has exited; `None` if it was reaped.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        self.0.as_ref().and_then(|child| pidfd(child.id()).ok())
    }

    /// Sends SIGTERM to the child; does not wait.
    pub fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends SIGHUP to the child.
    pub fn hang_up(&mut self) {
        self.signal(Signal::SIGHUP);
    }

    fn signal(&mut self, signal: Signal) {
        let Some(child) = &mut self.0 else { return };
        // The id of a reaped process may have been given to another process.
        if matches!(child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }

    /// Waits until the child exits by itself; `false` if the timeout expires first.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        self.0.as_mut().is_none_or(|child| exits_within(child.id(), timeout))
    }

    /// Sends SIGTERM to the child and waits until it has exited; sends SIGKILL if the timeout expires.
    pub fn stop(mut self, timeout: Duration) {
        self.terminate();
        let Some(mut child) = self.0.take() else { return };
        if !exits_within(child.id(), timeout) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

/// Whether a process exits before the timeout expires, or has exited. A child is not reaped.
pub fn exits_within(pid: u32, timeout: Duration) -> bool {
    // Opening a pidfd fails with ESRCH once the process is gone.
    let Ok(pidfd) = pidfd(pid) else { return true };
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// Returns a descriptor that is readable once the process has exited (pidfd_open(2)).
fn pidfd(pid: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes two integers, and returns a new descriptor or -1.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Has the kernel kill this process when its parent exits (`PR_SET_PDEATHSIG`).
///
/// # Errors
/// [`Error::Io`] of prctl(2); [`Error::Other`] if the parent has exited already.
pub fn die_with_parent(parent: u32) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|e| Error::io("tying this process to its parent", e))?;
    if nix::unistd::getppid().as_raw().cast_unsigned() != parent {
        return Err(Error::other("the process that started this one is gone"));
    }
    Ok(())
}

/// Starts a session, which detaches this process from its terminal (setsid(2)).
pub fn new_session() -> Result<()> {
    nix::unistd::setsid().map(drop).map_err(|e| Error::io("starting a session", e))
}

/// Sends SIGKILL to a process, which is known by a descriptor, if it has not exited. Its number may be another's by now.
///
/// # Errors
/// [`Error::Io`] if this process may not.
pub fn kill_process(pidfd: impl AsFd) -> Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call takes integers, and a null pointer for a signal like kill's.
    let sent = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_pidfd_send_signal,
            fd,
            SIGKILL,
            std::ptr::null::<nix::libc::siginfo_t>(),
            0,
        )
    };
    match Errno::result(sent) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(Error::io("killing a guest's process", e)),
    }
}

/// Returns a flag that SIGINT, SIGTERM and SIGHUP set instead of ending the process; the second signal ends it.
pub fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .map_err(|e| Error::io("handling signals", e))?;
    }
    Ok(flag)
}

/// Waits until the descriptor is readable or the flag is set.
pub fn wait_readable(fd: &impl AsFd, flag: &AtomicBool) -> Result<()> {
    // A signal that arrives just before the poll does not interrupt it: the flag is checked again after this time.
    let interval = PollTimeout::from(200u8);
    while !flag.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], interval) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(Error::io("waiting", e)),
        }
    }
    Ok(())
}

/// Waits until one of the descriptors is readable.
pub fn wait_any(fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop).map_err(|e| Error::io("waiting", e)),
        }
    }
}

/// Whether one of the descriptors is readable now.
pub fn is_readable(fds: &[BorrowedFd<'_>]) -> Result<bool> {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut fds, PollTimeout::ZERO) {
            Err(Errno::EINTR) => {}
            done => return done.map(|ready| ready > 0).map_err(|e| Error::io("waiting", e)),
        }
    }
}

/// Waits until one of the descriptors is readable or the timeout expires; returns whether the first one is readable.
pub fn wait_first(fds: &[BorrowedFd<'_>], timeout: PollTimeout) -> Result<bool> {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds.first().and_then(PollFd::any).unwrap_or(false)),
        Err(e) => Err(Error::io("waiting", e)),
    }
}

/// Returns an error if the flag of [`interrupt_flag`] is set.
///
/// # Errors
/// [`Error::Other`] if it is set.
pub fn check_interrupted(flag: &AtomicBool) -> Result<()> {
    if flag.load(Ordering::Relaxed) { Err(Error::other("interrupted")) } else { Ok(()) }
}

/// Returns a stream that becomes readable on SIGINT, SIGTERM or SIGHUP.
pub fn stop_signal() -> Result<UnixStream> {
    signals(&[SIGINT, SIGTERM, SIGHUP])
}

/// Returns two streams: one becomes readable on SIGINT or SIGTERM, and the other on SIGHUP, which [`take_signal`] takes.
pub fn stop_and_hangup_signals() -> Result<(UnixStream, UnixStream)> {
    Ok((signals(&[SIGINT, SIGTERM])?, signals(&[SIGHUP])?))
}

/// Takes all signals that have come; `true` if there were any.
pub fn take_signal(mut stream: &UnixStream) -> bool {
    let mut bytes = [0; 64];
    let mut any = false;
    while is_readable(&[stream.as_fd()]).unwrap_or(false) && stream.read(&mut bytes).is_ok_and(|len| len > 0)
    {
        any = true;
    }
    any
}

fn signals(of: &[i32]) -> Result<UnixStream> {
    let (reader, writer) = UnixStream::pair().map_err(|e| Error::io("creating a socket pair", e))?;
    for &signal in of {
        let writer = writer.try_clone().map_err(|e| Error::io("duplicating a descriptor", e))?;
        signal_hook::low_level::pipe::register(signal, writer)
            .map_err(|e| Error::io("handling signals", e))?;
    }
    Ok(reader)
}

/// Has SIGINT, SIGTERM and SIGHUP do nothing to this process, which ends with its parent: a terminal and a service manager send them to
/// both.
pub fn leave_stopping_to_parent() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::default()).map_err(|e| Error::io("handling signals", e))?;
    }
    Ok(())
}

/// Has a write beyond the file size limit (`ulimit -f`) fail with EFBIG, instead of ending the process by SIGXFSZ: it fails the
/// request of one guest then.
pub fn survive_file_size_limit() -> Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default())
        .map(drop)
        .map_err(|e| Error::io("handling signals", e))
}

/// Finds a program in `PATH`, `/usr/sbin` and `/sbin`. `package` is the Debian package that has it.
///
/// # Errors
/// [`Error::NotInstalled`] if no directory has it.
pub fn find_program(name: &'static str, package: &'static str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or(Error::NotInstalled { program: name, package })
}

/// Whether a process is exiting or was sent SIGKILL: it can take the kernel long to end it on a busy machine.
pub fn is_exiting(pid: u32) -> bool {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let flags = read("stat").as_deref().and_then(flags);
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
        || read("status").is_some_and(|status| kill_is_pending(&status))
}

/// The parent of a process; `None` if the process has exited.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    field(&stat, 4)?.parse().ok()
}

/// The flag of a task that is exiting or has exited (include/linux/sched.h).
const PF_EXITING: u32 = 4;

/// The task's flags: the ninth field of `/proc/PID/stat`.
fn flags(stat: &str) -> Option<u32> {
    field(stat, 9)?.parse().ok()
}

/// A field of `/proc/PID/stat` behind the name, by its number in proc_pid_stat(5).
fn field(stat: &str, number: usize) -> Option<&str> {
    // The name, in parentheses, may hold anything; the third field follows its end.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// Whether `/proc/PID/status` shows a pending SIGKILL, for the process or its first thread.
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
    fn killed_process_is_exiting_immediately() {
        assert!(!is_exiting(std::process::id()));
        for _ in 0..20 {
            let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            assert!(!is_exiting(child.id()));
            child.kill().unwrap();
            let exiting = is_exiting(child.id());
            child.wait().unwrap();
            assert!(exiting);
        }
    }

    #[test]
    fn parent_of_a_child_is_this_process() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert_eq!(parent(child.id()), Some(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(parent(child.id()), None);
    }

    #[test]
    fn process_is_killed_by_its_descriptor_and_one_that_has_exited_is_no_error() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = pidfd(child.id()).unwrap();
        kill_process(&process).unwrap();
        assert!(!child.wait().unwrap().success());
        kill_process(&process).unwrap();
    }

    #[test]
    fn process_exits_within_timeout_only_once_it_has_exited() {
        let short = Duration::from_millis(1);
        assert!(!exits_within(std::process::id(), short));
        let mut child = Command::new("true").spawn().unwrap();
        assert!(exits_within(child.id(), Duration::from_secs(20)));
        child.wait().unwrap();
        assert!(exits_within(child.id(), short));
    }
}
