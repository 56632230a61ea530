//! `xpv list`: lists the domains in the columns of `xl list`.

use std::collections::BTreeMap;

use hypervisor::local::DomainInfo;
use serde::Serialize;
use serde_json::{Value, json};

use crate::control::client;
use crate::dir::Dir;
use crate::error::Result;
use crate::machine::Machine;
use crate::machine::listing::Listing;
use crate::machine::xen_host::{XenDomain, XenHost};
use crate::output;

/// List the domains
///
/// It lists the machine in DIR. If none was started there and this is a domain of a Xen host, it lists the domains of that
/// host, as far as xenstore describes them: xl shows the rest. With --json it shows what `xpv dom0` has counted for each
/// domain, if it runs: see docs/control.md.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// List only this domain, by its name or domain ID
    domain: Option<String>,

    /// Print JSON, with the counters of `xpv dom0`
    #[arg(long)]
    json: bool,

    /// List the domains of the Xen host that this program runs on
    #[arg(long)]
    xen: bool,
}

/// A line of the listing.
#[derive(Debug, Serialize, PartialEq)]
struct Row {
    name: String,
    domid: u16,
    pid: Option<u32>,
    /// Resident memory in MiB; on a Xen host what the domain is to have.
    memory_mib: Option<u64>,
    /// Threads, shown in the column VCPUs; `None` on a Xen host.
    threads: Option<u64>,
    /// Processors that are online; `None` unless on a Xen host.
    vcpus: Option<u64>,
    /// `r` running, `b` blocked, `p` without a process; the other flags of xl are never set. `None` on a Xen host.
    state: Option<String>,
    /// Processor time in seconds; `None` on a Xen host.
    time_s: Option<f64>,
    /// By the kind of device, what dom0 has counted for all its devices; `None` if dom0 does not answer.
    stats: Option<Value>,
    /// The longest turn of each loop that serves all domains, in microseconds of its thread's processor time: of domain 0 (or
    /// the driver domain that this is) the control loops of `vbd` and `vif`, of a machine also its `store` and `broker`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    longest_turn_us: BTreeMap<String, u64>,
}

/// Lists the domains.
///
/// # Errors
/// No machine runs, or there is no such domain.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut rows = match Listing::open(dir, args.xen)? {
        Listing::Local(mut machine) => {
            let mut rows = local_rows(&machine, args.domain.as_deref())?;
            if let Some(row) = rows.iter_mut().find(|row| args.json && row.domid == 0) {
                row.longest_turn_us = machine.longest_turns()?;
            }
            rows
        }
        Listing::Xen(mut host) => xen_rows(&mut host, args.domain.as_deref())?,
    };
    if args.json {
        add_stats(&mut rows, dir);
        return output::json(&rows);
    }
    output::line(format_args!(
        "{:<40} {:>5} {:>5} {:>5} {:>10} {:>9}",
        "Name", "ID", "Mem", "VCPUs", "State", "Time(s)"
    ))?;
    for Row { name, domid, memory_mib, threads, vcpus, state, time_s, .. } in rows {
        let memory = shown(memory_mib);
        let processors = shown(threads.or(vcpus));
        let state = shown(state);
        let time = shown(time_s.map(|seconds| format!("{seconds:.1}")));
        output::line(format_args!(
            "{name:<40} {domid:>5} {memory:>5} {processors:>5} {state:>10} {time:>9}"
        ))?;
    }
    Ok(())
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Adds what dom0 has counted.
fn add_stats(rows: &mut [Row], dir: &Dir) {
    let Some(totals) = client::totals(dir) else { return };
    for row in rows {
        if row.domid == totals.domid {
            row.longest_turn_us.extend(totals.longest_turn_us.clone());
        }
        let total = totals.domains.iter().find(|domain| domain.domid == row.domid);
        row.stats = Some(total.map_or_else(|| json!({}), |domain| domain.stats.clone()));
    }
}

fn local_rows(machine: &Machine, domain: Option<&str>) -> Result<Vec<Row>> {
    let domains = match domain {
        Some(domain) => vec![machine.find(domain)?],
        None => machine.domains()?,
    };
    Ok(domains.iter().map(local_row).collect())
}

fn local_row(domain: &DomainInfo) -> Row {
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
        memory_mib: Some((stat.pages * page_size()) >> 20),
        threads: Some(stat.threads),
        vcpus: None,
        state: Some(state.into()),
        time_s: Some(stat.ticks as f64 / ticks_per_second() as f64),
        stats: None,
        longest_turn_us: BTreeMap::new(),
    }
}

fn xen_rows(host: &mut XenHost, domain: Option<&str>) -> Result<Vec<Row>> {
    let domains = match domain {
        Some(domain) => vec![host.find(domain)?],
        None => host.domains()?,
    };
    let row = |domain: &XenDomain| Row {
        name: domain.name(),
        domid: domain.domid.0,
        pid: None,
        memory_mib: domain.memory_kib.map(|kib| kib >> 10),
        threads: None,
        vcpus: domain.vcpus,
        state: None,
        time_s: None,
        stats: None,
        longest_turn_us: BTreeMap::new(),
    };
    Ok(domains.iter().map(row).collect())
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
