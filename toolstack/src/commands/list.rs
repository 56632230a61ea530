//! `xpv list`: lists the domains in the columns of `xl list`.

use hypervisor::local::DomainInfo;
use serde::Serialize;

use crate::dir::Dir;
use crate::error::Result;
use crate::machine::Machine;
use crate::output;

/// List the domains
#[derive(Debug, clap::Args)]
pub struct Args {
    /// List only this domain, by its name or domain ID
    domain: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A line of the listing.
#[derive(Debug, Serialize, PartialEq)]
struct Row {
    name: String,
    domid: u16,
    pid: Option<u32>,
    /// Resident memory in MiB.
    memory_mib: u64,
    /// Threads, shown in the column VCPUs.
    threads: u64,
    /// `r` running, `b` blocked, `p` without a process; the other flags of xl are never set.
    state: String,
    /// Processor time in seconds.
    time_s: f64,
}

/// Lists the domains.
///
/// # Errors
/// No machine runs, or there is no such domain.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let machine = Machine::connect(dir)?;
    let domains = match &args.domain {
        Some(domain) => vec![machine.find(domain)?],
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
    let stat = stat.as_deref().and_then(ProcStat::parse);
    let state = match stat.as_ref().map(|s| s.state) {
        None => "--p---",
        Some('R') => "r-----",
        Some(_) => "-b----",
    };
    let stat = stat.unwrap_or_default();
    Row {
        name: domain.name.clone(),
        domid: domain.domid.0,
        pid: domain.pid,
        memory_mib: (stat.pages * page_size()) >> 20,
        threads: stat.threads,
        state: state.into(),
        time_s: stat.ticks as f64 / ticks_per_second() as f64,
    }
}

/// Fields of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, Default, PartialEq)]
struct ProcStat {
    state: char,
    ticks: u64,
    threads: u64,
    pages: u64,
}

impl ProcStat {
    fn parse(stat: &str) -> Option<ProcStat> {
        // The second field is a name in parentheses, which may hold anything; the third follows its end.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |n| field(n)?.parse::<u64>().ok();
        Some(ProcStat {
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

fn sysconf(variable: nix::unistd::SysconfVar, default: u64) -> u64 {
    nix::unistd::sysconf(variable).ok().flatten().and_then(|n| n.try_into().ok()).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_with_parentheses_in_the_name_is_parsed() {
        let stat =
            "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 7 0 9 4096 256 18446744073709551615";
        let parsed = ProcStat::parse(stat).unwrap();
        assert_eq!(parsed, ProcStat { state: 'S', ticks: 200, threads: 7, pages: 256 });
        assert_eq!(ProcStat::parse("42 (x"), None);
        assert_eq!(ProcStat::parse("42 (x) S 1"), None);
    }
}
