//! A machine on which nothing happens: what its processes use of the processors. Each guest has a disk and a vif, and is a process.

use super::{Subject, sleeps};
use crate::namespace::Namespace;
use crate::xpv::Machine;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Guests of the machine.
const GUESTS: usize = 128;
/// Bytes of a guest's disk.
const IMAGE: u64 = 1 << 20;
/// After the last guest was created, until all is quiet: what looks at something from time to time does so ever more rarely.
const SETTLE: Duration = Duration::from_secs(40);
/// How long is counted.
const TIME: Duration = Duration::from_secs(60);

/// What a process, or several, used.
#[derive(Clone, Copy, Default)]
struct Used {
    on_cpu_ns: u64,
    slept: f64,
}

/// Processes that are shown as one.
struct Group {
    name: String,
    ids: Vec<u32>,
}

/// A table with a line for each kind of process: wake-ups a second, and the share of one processor.
///
/// # Errors
/// The machine does not come up.
pub(super) fn table(xpv: &Path) -> Result<String, String> {
    let machine = Machine::start(xpv)?;
    let namespaces = (0..GUESTS).map(|number| create(&machine, number)).collect::<Result<Vec<_>, _>>()?;
    let groups = [
        Group { name: "hypervisor".to_owned(), ids: vec![machine.hypervisor()] },
        Group { name: "dom0".to_owned(), ids: vec![machine.dom0()] },
        Group { name: format!("{GUESTS} guests"), ids: machine.guests()? },
    ];
    std::thread::sleep(SETTLE);
    let before = groups.iter().map(used).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    std::thread::sleep(TIME);
    let after = groups.iter().map(used).collect::<Result<Vec<_>, _>>()?;
    let seconds = start.elapsed().as_secs_f64();
    let costs: Vec<(String, Used)> = groups
        .into_iter()
        .zip(before.into_iter().zip(after))
        .map(|(group, (before, after))| (group.name, after.since(before)))
        .collect();
    drop(namespaces);
    Ok(markdown(&costs, seconds))
}

/// A guest whose interface has a namespace of its own.
fn create(machine: &Machine, number: usize) -> Result<Namespace, String> {
    let image = machine.path(&format!("{number}.img"));
    let failed = |e: std::io::Error| format!("{}: {e}", image.display());
    fs::File::create(&image).and_then(|file| file.set_len(IMAGE)).map_err(failed)?;
    let namespace = Namespace::new()?;
    let disk = format!("disk = ['format=raw,vdev=xvda,access=rw,target={}']", image.display());
    let vif = format!("vif = ['mac=00:16:3e:00:01:{number:02x}']");
    machine.create(&format!("guest{number}"), &format!("{disk}\n{vif}"), &namespace.path())?;
    Ok(namespace)
}

impl Used {
    fn and(self, other: Self) -> Self {
        Self { on_cpu_ns: self.on_cpu_ns + other.on_cpu_ns, slept: self.slept + other.slept }
    }

    fn since(self, earlier: Self) -> Self {
        Self { on_cpu_ns: self.on_cpu_ns - earlier.on_cpu_ns, slept: self.slept - earlier.slept }
    }
}

fn used(group: &Group) -> Result<Used, String> {
    let each = group.ids.iter().map(|id| used_by(&group.name, *id));
    Ok(each.collect::<Result<Vec<_>, _>>()?.into_iter().fold(Used::default(), Used::and))
}

fn used_by(name: &str, id: u32) -> Result<Used, String> {
    let subject = Subject { name: name.to_owned(), id, is_process: true };
    let threads = sleeps::threads(&subject).map_err(|e| format!("{name}: {e}"))?;
    let times = threads.iter().filter_map(|thread| fs::read_to_string(format!("{thread}/schedstat")).ok());
    let on_cpu_ns = times.filter_map(|text| on_cpu_ns(&text)).sum();
    Ok(Used { on_cpu_ns, slept: sleeps::of(&subject)?.slept })
}

/// The first number of a `schedstat` file: nanoseconds on a processor.
fn on_cpu_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

fn markdown(costs: &[(String, Used)], seconds: f64) -> String {
    let mut text = String::from("| process | wake-ups a second | of one core |\n|---|--:|--:|\n");
    let mut line = |name: &str, used: Used| {
        let share = used.on_cpu_ns as f64 / 1e9 / seconds * 100.0;
        let _ = writeln!(text, "| {name} | {:.1} | {share:.2} % |", used.slept / seconds);
    };
    costs.iter().for_each(|(name, used)| line(name, *used));
    line("all", costs.iter().fold(Used::default(), |sum, (_, used)| sum.and(*used)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_shows_rates_and_shares() {
        let used = Used { on_cpu_ns: 50_000_000, slept: 20.0 };
        let text = markdown(&[("dom0".to_owned(), used), ("guests".to_owned(), used)], 10.0);
        assert!(
            text.contains("| dom0 | 2.0 | 0.50 % |\n") && text.ends_with("| all | 4.0 | 1.00 % |\n"),
            "{text}"
        );
        assert_eq!(on_cpu_ns("123 456 7\n"), Some(123));
    }
}
