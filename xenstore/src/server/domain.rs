//! Domains: introduced, released, and what dom0 sets for each.

use std::collections::BTreeSet;
use std::sync::Arc;

use ring_abi::xs_wire::XsError;

use super::access::Who;
use super::dispatch::{Request, exactly, number, ok, one, text};
use super::node_ops::{Change, View};
use super::path::Path;
use super::quota::{Allowance, Quota, Quotas};
use super::{ConnId, Core, INTRODUCE_DOMAIN, RELEASE_DOMAIN};
use crate::DomId;
use crate::wire::strings;

/// `DOMID_FIRST_RESERVED` of xen.h: numbers from here on are no domains.
const FIRST_RESERVED: DomId = 0x7ff0;
/// `DOMID_SELF`
const SELF: DomId = 0x7ff0;
/// The bits of GET_FEATURE are about the ring page, and domains come here over sockets: none.
const FEATURES: u32 = 0;

/// What is known of a domain.
pub(super) struct Domain {
    introduced: bool,
    pub(super) conns: BTreeSet<ConnId>,
    pub(super) target: Option<DomId>,
    features: u32,
    pub(super) allowance: Allowance,
}

impl Domain {
    fn new(domid: DomId, quotas: Quotas) -> Domain {
        let allowance = Allowance::new(domid, quotas);
        Domain { introduced: false, conns: BTreeSet::new(), target: None, features: FEATURES, allowance }
    }

    pub(super) fn introduced(domid: DomId, quotas: Quotas) -> Domain {
        Domain { introduced: true, ..Domain::new(domid, quotas) }
    }
}

type Outcome = Result<Vec<u8>, XsError>;

impl Core {
    /// Notes that a domain is there; the first time fires `@introduceDomain`.
    pub(super) fn note_introduced(&mut self, domid: DomId) -> Result<(), XsError> {
        if domid == 0 || domid >= FIRST_RESERVED {
            return Err(XsError::EINVAL);
        }
        let domain = self.domain(domid);
        if !std::mem::replace(&mut domain.introduced, true) {
            self.fire_special(INTRODUCE_DOMAIN);
        }
        Ok(())
    }

    /// Drops all that is a domain's, and fires `@releaseDomain`.
    pub(super) fn forget_domain(&mut self, domid: DomId) -> Result<(), XsError> {
        if domid == 0 {
            return Err(XsError::EINVAL);
        }
        let domain = self.domains.get(&domid).filter(|d| d.introduced).ok_or(XsError::ENOENT)?;
        for conn in domain.conns.clone() {
            self.close(conn, "the domain was released");
        }
        self.domains.remove(&domid);
        for domain in self.domains.values_mut() {
            domain.target.take_if(|target| *target == domid);
        }
        self.strip(domid);
        self.fire_special(RELEASE_DOMAIN);
        Ok(())
    }

    /// Removes a domain's nodes and takes it off every list.
    fn strip(&mut self, domid: DomId) {
        let Core { tree, generation, .. } = self;
        let mut allowance = Allowance::new(0, self.quotas);
        let mut view = View { tree, generation, who: Who::new(0), allowance: &mut allowance };
        let owned = view.tree.topmost_owned(domid);
        let effects: Vec<_> = owned.into_iter().filter_map(|p| view.apply(&Change::Rm(p)).ok()?).collect();
        // The root and the special nodes stay; a released domain's become dom0's.
        for path in ["/", INTRODUCE_DOMAIN, RELEASE_DOMAIN].map(Path::fixed) {
            let Some(node) = view.tree.get(&path).filter(|n| n.owner() == domid) else { continue };
            let mut perms = node.perms.clone();
            Arc::make_mut(&mut perms)[0].domid = 0;
            *view.generation += 1;
            view.tree.set_perms(&path, perms, *view.generation);
        }
        for path in view.tree.naming(domid) {
            let Some(node) = view.tree.get(&path) else { continue };
            let (owner, listed) = (node.perms[0], &node.perms[1..]);
            let kept = listed.iter().copied().filter(|p| p.domid != domid);
            let perms = std::iter::once(owner).chain(kept).collect();
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
        self.note_introduced(number(domid)?)?;
        Ok(ok())
    }

    pub(super) fn request_release(&mut self, r: &Request<'_>) -> Outcome {
        self.forget_domain(number(one(r.payload)?)?)?;
        Ok(ok())
    }

    pub(super) fn domain_path(&mut self, r: &Request<'_>) -> Outcome {
        Ok(text(Path::home(number(one(r.payload)?)?)))
    }

    pub(super) fn is_introduced(&mut self, r: &Request<'_>) -> Outcome {
        let domid = number(one(r.payload)?)?;
        let there = domid == SELF || self.domains.get(&domid).is_some_and(|d| d.introduced);
        Ok(text(if there { 'T' } else { 'F' }))
    }

    /// Nothing is remembered of a shutdown here that would have to be forgotten.
    pub(super) fn resume(&mut self, r: &Request<'_>) -> Outcome {
        let domid = number(one(r.payload)?)?;
        if domid == 0 {
            return Err(XsError::EINVAL);
        }
        self.introduced_domain(domid)?;
        Ok(ok())
    }

    pub(super) fn set_target(&mut self, r: &Request<'_>) -> Outcome {
        let [domid, target] = exactly(r.payload)?;
        let target = number(target)?;
        self.introduced_domain(target)?;
        self.introduced_domain(number(domid)?)?.target = Some(target);
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
        let (domid, features) = (real(number(domid)?)?, number::<u32>(features)?);
        if features & !FEATURES != 0 {
            return Err(XsError::EINVAL);
        }
        let domain = self.domain(domid);
        if domain.introduced {
            return Err(XsError::EBUSY);
        }
        domain.features = features;
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
            [name, value] => self.quotas.set(quota(name)?, number(value)?),
            [domid, name, value] => {
                let (domid, name, value) = (real(number(domid)?)?, quota(name)?, number(value)?);
                self.domain(domid).allowance.quotas.set(name, value);
            }
            _ => return Err(XsError::EINVAL),
        }
        Ok(ok())
    }

    fn introduced_domain(&mut self, domid: DomId) -> Result<&mut Domain, XsError> {
        self.domains.get_mut(&domid).filter(|d| d.introduced).ok_or(XsError::ENOENT)
    }

    /// A domain's entry, made if need be: dom0 sets quotas and features before it introduces.
    fn domain(&mut self, domid: DomId) -> &mut Domain {
        let quotas = self.quotas;
        self.domains.entry(domid).or_insert_with(|| Domain::new(domid, quotas))
    }
}

fn real(domid: DomId) -> Result<DomId, XsError> {
    if domid < FIRST_RESERVED { Ok(domid) } else { Err(XsError::EINVAL) }
}

fn quota(name: &[u8]) -> Result<Quota, XsError> {
    std::str::from_utf8(name).ok().and_then(Quota::from_name).ok_or(XsError::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::MOST_CONNECTIONS;

    #[test]
    fn a_domain_has_several_connections_within_a_bound_and_loses_all_when_released() {
        let mut core = Core::new(Quotas::default());
        let ids: Vec<_> = (0..MOST_CONNECTIONS).map(|_| core.introduce(1).unwrap()).collect();
        assert_eq!(core.introduce(1), Err(XsError::ENOSPC));
        assert!(ids.iter().all(|id| !core.closed(*id)));
        core.disconnect(ids[0]);
        let last = core.introduce(1).unwrap();
        core.release(1).unwrap();
        assert!(ids.iter().chain([&last]).all(|id| core.closed(*id)));
    }
}
