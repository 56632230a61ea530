//! `xpv list`: the domains, in the columns of `xl list`.

use hypervisor::local::DomainInfo;
use serde::Serialize;

use crate::dir::Dir;
use crate::error::Result;
use crate::machine::Machine;
use crate::output;

/// List the domains
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this one, by its name or number
    domain: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A domain as it is shown.
#[derive(Debug, Serialize, PartialEq)]
struct Row {
    name: String,
    domid: u16,
    pid: Option<u32>,
    /// Resident memory in MiB.
    memory_mib: u64,
    /// Threads.
    threads: u64,
    /// `r` running, `b` blocked, `p` without a process; the others as xl has them, never set.
    state: String,
    /// Processor time in seconds.
    time_s: f64,
}

/// Lists them.
///
/// # Errors
/// No machine runs, or no such domain.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let machine = Machine::connect(dir)?;
    let domains = match &args.domain {
        Some(who) => vec![machine.find(who)?],
        None => machine.domains()?,
    };
    let rows: Vec<Row> = domains.iter().map(row).collect();
    if args.json {
        return output::json(&rows);
    }
    println!("{:<40} {:>5} {:>5} {:>5} {:>10} {:>9}", "Name", "ID", "Mem", "VCPUs", "State", "Time(s)");
    for Row { name, domid, memory_mib, threads, state, time_s, .. } in rows {
        println!("{name:<40} {domid:>5} {memory_mib:>5} {threads:>5} {state:>10} {time_s:>9.1}");
    }
    Ok(())
}

fn row(domain: &DomainInfo) -> Row {
    let stat = domain.pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    let seen = stat.as_deref().and_then(Seen::parse);
    let state = match seen.as_ref().map(|s| s.state) {
        None => "--p---",
        Some('R') => "r-----",
        Some(_) => "-b----",
    };
    let seen = seen.unwrap_or_default();
    Row {
        name: domain.name.clone(),
        domid: domain.domid.0,
        pid: domain.pid,
        memory_mib: (seen.pages * page_size()) >> 20,
        threads: seen.threads,
        state: state.into(),
        time_s: seen.ticks as f64 / ticks_per_second() as f64,
    }
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)).
#[derive(Debug, Default, PartialEq)]
struct Seen {
    state: char,
    ticks: u64,
    threads: u64,
    pages: u64,
}

impl Seen {
    fn parse(stat: &str) -> Option<Seen> {
        // The second field is a name in parentheses, which may hold anything; the third follows its end.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |n| field(n)?.parse::<u64>().ok();
        Some(Seen {
            state: field(3)?.chars().next()?,
            ticks: number(14)? + number(15)?,
            threads: number(20)?,
            pages: number(24)?,
        })
    }
}

fn page_size() -> u64 {
    sysconf(nix::unistd::SysconfVar::PAGE_SIZE, 4096)
}

fn ticks_per_second() -> u64 {
    sysconf(nix::unistd::SysconfVar::CLK_TCK, 100)
}

fn sysconf(what: nix::unistd::SysconfVar, usual: u64) -> u64 {
    nix::unistd::sysconf(what).ok().flatten().and_then(|n| n.try_into().ok()).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_an_odd_name_is_read() {
        let stat =
            "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 7 0 9 4096 256 18446744073709551615";
        let seen = Seen::parse(stat).unwrap();
        assert_eq!(seen, Seen { state: 'S', ticks: 200, threads: 7, pages: 256 });
        assert_eq!(Seen::parse("42 (x"), None);
        assert_eq!(Seen::parse("42 (x) S 1"), None);
    }
}
