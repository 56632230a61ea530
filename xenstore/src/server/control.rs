//! CONTROL: the commands of `xenstore-control`. The replies are text for people.

use std::fmt::Write;

use ring_abi::xs_wire::XsError;

use super::Core;
use super::dispatch::{Request, number, ok, text};
use super::quota::{Quota, Quotas};
use crate::wire::strings;
use ring_abi::DomId;

const HELP: &str = "Supported commands:
help
  list these
check
  count all nodes anew and compare with what is accounted
print <text>
  write text to the log
log on|off
  accepted; what is logged is decided where the store was started
quota [<domid>]
  a domain's quotas and what it uses, or those of new domains
quota set <name> <value>
  set a quota of new domains, 0 for no limit
longest-turn
  the longest turn of the store's loop so far, in microseconds of its thread's processor time
";

impl Core {
    pub(super) fn control(&mut self, r: &Request<'_>) -> Result<Vec<u8>, XsError> {
        let args: Result<Vec<&str>, _> = strings(r.payload).map(std::str::from_utf8).collect();
        match args.map_err(|_| XsError::EINVAL)?[..] {
            ["help"] => Ok(text(HELP)),
            ["check"] if self.tree.is_consistent() => Ok(ok()),
            ["check"] => Err(XsError::EIO),
            ["print", line] => {
                tracing::info!(line, "xenstore control");
                Ok(ok())
            }
            ["log", "on" | "off"] => Ok(ok()),
            ["quota"] => Ok(text(table("Quotas of new domains", &self.quotas, |_| None))),
            ["quota", "set", name, value] => {
                let quota = Quota::from_name(name).ok_or(XsError::EINVAL)?;
                self.quotas.set(quota, number(value.as_bytes())?);
                Ok(ok())
            }
            ["longest-turn"] => Ok(text(self.longest_turn.get().as_micros())),
            ["quota", domid] => self.usage(number(domid.as_bytes())?).map(text),
            _ => Err(XsError::EINVAL),
        }
    }

    fn usage(&self, domid: DomId) -> Result<String, XsError> {
        let domain = self.domains.get(&domid).ok_or(XsError::ENOENT)?;
        // What is counted for each connection is shown for the connection that uses most.
        let replies =
            domain.conns.iter().filter_map(|id| self.connections.get(id)).map(|c| c.outbox.replies());
        let replies = replies.max();
        let used = |quota| match quota {
            Quota::Nodes => Some(self.tree.owned(domid) as usize),
            Quota::Watches => Some(domain.usage.watches),
            Quota::Transactions => Some(domain.usage.transactions),
            Quota::Memory => Some(domain.usage.held),
            Quota::Outstanding => replies,
            Quota::Events => Some(domain.usage.events),
            _ => None,
        };
        Ok(table(&format!("Domain {domid}"), &domain.allowance.quotas, used))
    }
}

fn table(title: &str, quotas: &Quotas, used: impl Fn(Quota) -> Option<usize>) -> String {
    let mut out = format!("{title}:\n");
    for quota in Quota::ALL {
        let name = quota.name();
        let most = quotas.get(quota);
        // Writing to a String cannot fail.
        let _ = match used(quota) {
            Some(used) => writeln!(out, "{name:<17}: {used:>8} (max {most:>8})"),
            None => writeln!(out, "{name:<17}: {most:>8}"),
        };
    }
    out
}
