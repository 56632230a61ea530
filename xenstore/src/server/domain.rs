//! Domains: introducing and releasing them, and their targets, features and quotas.

use std::collections::BTreeSet;
use std::sync::Arc;

use ring_abi::xs_wire::XsError;

use super::access::Credentials;
use super::dispatch::{Request, exactly, number, ok, one, text};
use super::node_ops::{Change, TreeView};
use super::path::Path;
use super::quota::{Allowance, Quota, Quotas};
use super::usage::Usage;
use super::{ConnId, Core, INTRODUCE_DOMAIN, RELEASE_DOMAIN};
use crate::wire::strings;
use ring_abi::DomId;

/// The bits of GET_FEATURE. They describe the ring page, and domains connect by sockets here: none.
const FEATURES: u32 = 0;

/// The store's record of a domain.
pub(super) struct Domain {
    pub(super) introduced: bool,
    pub(super) conns: BTreeSet<ConnId>,
    pub(super) target: Option<DomId>,
    pub(super) features: u32,
    pub(super) allowance: Allowance,
    /// What all its connections use.
    pub(super) usage: Usage,
}

impl Domain {
    pub(super) fn new(domid: DomId, quotas: Quotas) -> Domain {
        let allowance = Allowance::new(domid, quotas);
        let usage = Usage::default();
        Domain {
            introduced: false,
            conns: BTreeSet::new(),
            target: None,
            features: FEATURES,
            allowance,
            usage,
        }
    }

    pub(super) fn introduced(domid: DomId, quotas: Quotas) -> Domain {
        Domain { introduced: true, ..Domain::new(domid, quotas) }
    }
}

type Outcome = Result<Vec<u8>, XsError>;

impl Core {
    /// Marks a domain as introduced; fires `@introduceDomain` the first time.
    pub(super) fn mark_introduced(&mut self, domid: DomId) -> Result<(), XsError> {
        if domid == DomId::DOM0 || domid >= DomId::FIRST_RESERVED {
            return Err(XsError::EINVAL);
        }
        let domain = self.domain(domid);
        if !std::mem::replace(&mut domain.introduced, true) {
            self.journal.note(domid);
            self.fire_special(INTRODUCE_DOMAIN);
        }
        Ok(())
    }

    /// Removes a domain with its connections and nodes, and fires `@releaseDomain`.
    pub(super) fn remove_domain(&mut self, domid: DomId) -> Result<(), XsError> {
        if domid == DomId::DOM0 {
            return Err(XsError::EINVAL);
        }
        let domain = self.domains.get(&domid).filter(|d| d.introduced).ok_or(XsError::ENOENT)?;
        for conn in domain.conns.clone() {
            self.close(conn);
        }
        self.domains.remove(&domid);
        self.journal.note(domid);
        self.turns.remove(domid);
        for domain in self.domains.values_mut() {
            domain.target.take_if(|target| *target == domid);
        }
        self.remove_nodes_of(domid);
        self.fire_special(RELEASE_DOMAIN);
        Ok(())
    }

    /// Removes a domain's nodes, and its entries from the permissions of all others.
    fn remove_nodes_of(&mut self, domid: DomId) {
        let Core { tree, generation, .. } = self;
        let mut allowance = Allowance::new(DomId::DOM0, self.quotas);
        let mut view = TreeView {
            tree,
            generation,
            credentials: Credentials::new(DomId::DOM0),
            allowance: &mut allowance,
        };
        let owned = view.tree.topmost_owned(domid);
        let effects: Vec<_> = owned.into_iter().filter_map(|p| view.apply(&Change::Rm(p)).ok()?).collect();
        // The root and the special nodes cannot be removed: dom0 gets those that a released domain owned.
        for path in ["/", INTRODUCE_DOMAIN, RELEASE_DOMAIN].map(Path::fixed) {
            let Some(node) = view.tree.get(&path).filter(|n| n.owner() == domid) else { continue };
            let mut perms = node.perms.clone();
            Arc::make_mut(&mut perms)[0].domid = DomId::DOM0;
            *view.generation += 1;
            view.tree.set_perms(&path, perms, *view.generation);
        }
        for path in view.tree.naming(domid) {
            let Some(node) = view.tree.get(&path) else { continue };
            let owner = node.perms[0];
            let others = node.perms[1..].iter().copied().filter(|p| p.domid != domid);
            let perms = std::iter::once(owner).chain(others).collect();
            *view.generation += 1;
            view.tree.set_perms(&path, perms, *view.generation);
        }
        self.fire(effects);
    }

    pub(super) fn request_introduce(&mut self, r: &Request<'_>) -> Outcome {
        let mut args = strings(r.payload);
        let (Some(domid), Some(_frame), Some(port)) = (args.next(), args.next(), args.next()) else {
            return Err(XsError::EINVAL);
        };
        if number::<u32>(port)? == 0 {
            return Err(XsError::EINVAL);
        }
        self.mark_introduced(number(domid)?)?;
        Ok(ok())
    }

    pub(super) fn request_release(&mut self, r: &Request<'_>) -> Outcome {
        self.remove_domain(number(one(r.payload)?)?)?;
        Ok(ok())
    }

    pub(super) fn domain_path(&mut self, r: &Request<'_>) -> Outcome {
        Ok(text(Path::home(number(one(r.payload)?)?)))
    }

    pub(super) fn is_introduced(&mut self, r: &Request<'_>) -> Outcome {
        let domid = number(one(r.payload)?)?;
        let introduced = domid == DomId::SELF || self.domains.get(&domid).is_some_and(|d| d.introduced);
        Ok(text(if introduced { 'T' } else { 'F' }))
    }

    /// Handles RESUME, which has no effect: this store records no shutdown of a domain.
    pub(super) fn resume(&mut self, r: &Request<'_>) -> Outcome {
        let domid = number(one(r.payload)?)?;
        if domid == DomId::DOM0 {
            return Err(XsError::EINVAL);
        }
        self.introduced_domain(domid)?;
        Ok(ok())
    }

    pub(super) fn set_target(&mut self, r: &Request<'_>) -> Outcome {
        let [domid, target] = exactly(r.payload)?;
        let target = number(target)?;
        self.introduced_domain(target)?;
        let domid = number(domid)?;
        self.introduced_domain(domid)?.target = Some(target);
        self.journal.note(domid);
        Ok(ok())
    }

    pub(super) fn get_feature(&mut self, r: &Request<'_>) -> Outcome {
        let mut args = strings(r.payload).filter(|s| !s.is_empty());
        match (args.next(), args.next()) {
            (None, _) => Ok(text(self.domains.get(&r.domid).map_or(FEATURES, |d| d.features))),
            (Some(domid), None) => {
                let domid = number(domid)?;
                Ok(text(self.domains.get(&domid).ok_or(XsError::ENOENT)?.features))
            }
            _ => Err(XsError::EINVAL),
        }
    }

    pub(super) fn set_feature(&mut self, r: &Request<'_>) -> Outcome {
        let [domid, features] = exactly(r.payload)?;
        let domid = ordinary(number(domid)?)?;
        let features = number::<u32>(features)?;
        if features & !FEATURES != 0 {
            return Err(XsError::EINVAL);
        }
        let domain = self.domain(domid);
        if domain.introduced {
            return Err(XsError::EBUSY);
        }
        domain.features = features;
        self.journal.note(domid);
        Ok(ok())
    }

    pub(super) fn get_quota(&mut self, r: &Request<'_>) -> Outcome {
        let args: Vec<&[u8]> = strings(r.payload).collect();
        let (quotas, name) = match args[..] {
            [] | [b""] => return Ok(text(Quota::ALL.map(Quota::name).join(" "))),
            [name] => (self.quotas, name),
            [domid, name] => {
                let domid = number(domid)?;
                (self.domains.get(&domid).ok_or(XsError::ENOENT)?.allowance.quotas, name)
            }
            _ => return Err(XsError::EINVAL),
        };
        Ok(text(quotas.get(quota(name)?)))
    }

    pub(super) fn set_quota(&mut self, r: &Request<'_>) -> Outcome {
        let args: Vec<&[u8]> = strings(r.payload).collect();
        match args[..] {
            [name, value] => {
                self.quotas.set(quota(name)?, number(value)?);
                self.journal.note_quotas();
            }
            [domid, name, value] => {
                let domid = ordinary(number(domid)?)?;
                let name = quota(name)?;
                let value = number(value)?;
                self.domain(domid).allowance.quotas.set(name, value);
                self.journal.note(domid);
            }
            _ => return Err(XsError::EINVAL),
        }
        Ok(ok())
    }

    fn introduced_domain(&mut self, domid: DomId) -> Result<&mut Domain, XsError> {
        self.domains.get_mut(&domid).filter(|d| d.introduced).ok_or(XsError::ENOENT)
    }

    /// A domain's record, created where missing: dom0 sets quotas and features before it introduces a domain.
    fn domain(&mut self, domid: DomId) -> &mut Domain {
        let quotas = self.quotas;
        self.domains.entry(domid).or_insert_with(|| Domain::new(domid, quotas))
    }
}

fn ordinary(domid: DomId) -> Result<DomId, XsError> {
    if domid < DomId::FIRST_RESERVED { Ok(domid) } else { Err(XsError::EINVAL) }
}

fn quota(name: &[u8]) -> Result<Quota, XsError> {
    std::str::from_utf8(name).ok().and_then(Quota::from_name).ok_or(XsError::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::MAX_CONNECTIONS;

    #[test]
    fn domain_has_a_bounded_number_of_connections_all_closed_on_release() {
        let mut core = Core::new(Quotas::default());
        let ids: Vec<_> = (0..MAX_CONNECTIONS).map(|_| core.introduce(DomId(1)).unwrap()).collect();
        assert_eq!(core.introduce(DomId(1)), Err(XsError::ENOSPC));
        assert!(ids.iter().all(|id| !core.closed(*id)));
        core.disconnect(ids[0]);
        let last = core.introduce(DomId(1)).unwrap();
        core.release(DomId(1)).unwrap();
        assert!(ids.iter().chain([&last]).all(|id| core.closed(*id)));
    }
}
