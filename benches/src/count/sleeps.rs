//! How often the threads of a process slept, by the kernel's own count (proc_pid_status(5)).

use super::Subject;
use std::fs;

/// Context switches of a process's threads.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub(super) struct Switches {
    /// The thread had nothing to do, and slept until it was woken up.
    pub(super) slept: f64,
    /// Another thread was to run.
    pub(super) preempted: f64,
}

impl Switches {
    pub(super) fn and(self, other: Self) -> Self {
        Self { slept: self.slept + other.slept, preempted: self.preempted + other.preempted }
    }

    pub(super) fn since(self, earlier: Self) -> Self {
        Self { slept: self.slept - earlier.slept, preempted: self.preempted - earlier.preempted }
    }

    pub(super) fn divided_by(self, count: f64) -> Self {
        Self { slept: self.slept / count, preempted: self.preempted / count }
    }
}

/// Those so far of all its threads that live.
///
/// # Errors
/// It has ended.
pub(super) fn of(subject: &Subject) -> Result<Switches, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", subject.name);
    let threads = threads(subject).map_err(failed)?;
    let texts = threads.iter().map(|directory| fs::read_to_string(format!("{directory}/status")));
    let sum = texts.filter_map(Result::ok).fold(Switches::default(), |sum, text| sum.and(parse(&text)));
    Ok(sum)
}

/// The directories of its threads in /proc.
pub(super) fn threads(subject: &Subject) -> std::io::Result<Vec<String>> {
    if !subject.is_process {
        return Ok(vec![format!("/proc/self/task/{}", subject.id)]);
    }
    let base = format!("/proc/{}/task", subject.id);
    fs::read_dir(&base)?.map(|entry| Ok(format!("{base}/{}", entry?.file_name().display()))).collect()
}

/// The number after a key of a `status` file.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
}

fn parse(status: &str) -> Switches {
    let count = |key| field(status, key).unwrap_or_default() as f64;
    Switches { slept: count("voluntary_ctxt_switches"), preempted: count("nonvoluntary_ctxt_switches") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    #[test]
    fn thread_that_waits_is_counted_as_slept() {
        let (tid_sender, tid) = channel();
        let (to, from) = channel::<()>();
        let (back, answers) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                tid_sender.send(nix::unistd::gettid().as_raw().cast_unsigned()).unwrap();
                from.iter().for_each(|()| back.send(()).unwrap());
            });
            let subject = Subject { name: "t".into(), id: tid.recv().unwrap(), is_process: false };
            let before = of(&subject).unwrap();
            // Some questions come before their thread sleeps again, on a busy machine most.
            let deadline = Instant::now() + Duration::from_secs(20);
            while of(&subject).unwrap().since(before).slept <= 5.0 {
                assert!(Instant::now() < deadline, "it never sleeps");
                to.send(()).unwrap();
                answers.recv().unwrap();
            }
            drop(to);
        });
    }

    #[test]
    fn status_of_a_thread_is_parsed() {
        let status = "Name:\txpv\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(parse(status), Switches { slept: 150.0, preempted: 545.0 });
    }
}
