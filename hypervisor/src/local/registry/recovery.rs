//! A broker that takes over from one that was killed: its domains are kept, and their members take up their memberships
//! again, with their arenas and ports.
//!
//! Until each has done so or is given up nothing else is served, so that no member meets a peer that is still missing. A
//! process is known by the token that it got when it joined.

use super::{Registry, Rules};
use crate::local::answer::{Answer, Effect, Outcome, fail};
use crate::local::record::{Client, KeptMember, Record, Role};
use crate::local::state_file::{Kept, KeptDomain};
use crate::local::token::Token;
use crate::local::wire::{Failure, Reply, Request};
use ring_abi::{DomId, EventPort};

/// Whether a request is served while members of the predecessor are missing.
pub(super) fn is_permitted(role: Role, request: &Request) -> bool {
    match role {
        Role::New => matches!(request, Request::Rejoin { .. } | Request::Control),
        Role::Controller => matches!(request, Request::Await { .. }),
        Role::Member(_) => matches!(
            request,
            Request::Offer { .. } | Request::RestorePort(_) | Request::Resumed | Request::Close(_)
        ),
    }
}

impl Registry {
    /// Has members get a token, by which a successor knows them.
    pub(in crate::local) fn give_tokens(&mut self) {
        self.has_tokens = true;
    }

    /// Creates the state that a broker takes over.
    pub(in crate::local) fn take_over(rules: Rules, kept: Kept) -> Self {
        let mut registry = Self::new(rules);
        registry.last = kept.last;
        for KeptDomain { domid, uid, name, member } in kept.domains {
            if domid != DomId::DOM0 {
                registry.domains.insert(domid, Record::new(name, vec![uid]));
            }
            if let Some(record) = registry.domains.get_mut(&domid) {
                record.awaited = member;
            }
            if member.is_some() {
                registry.unresumed.insert(domid);
            }
            if member.is_some() || domid != DomId::DOM0 {
                registry.inherited.insert(domid);
            }
        }
        registry
    }

    /// Whether members of the predecessor are missing.
    pub(in crate::local) fn is_recovering(&self) -> bool {
        !self.unresumed.is_empty()
    }

    /// Whether there are domains of a predecessor, whose recovery has not ended.
    pub(in crate::local) fn has_inherited(&self) -> bool {
        !self.inherited.is_empty()
    }

    /// The predecessor's members that are missing.
    pub(in crate::local) fn awaited(&self) -> Vec<(DomId, KeptMember)> {
        let missing = self.unresumed.iter();
        missing.filter_map(|domid| Some((*domid, self.domains.get(domid)?.awaited?))).collect()
    }

    /// Gives up a member of the predecessor that has not come back. Returns whether it was missing.
    pub(in crate::local) fn give_up(&mut self, domid: DomId) -> bool {
        let awaited = self.domains.get_mut(&domid).and_then(|record| record.awaited.take());
        self.changed.insert(domid);
        awaited.is_some() && self.unresumed.remove(&domid)
    }

    /// Gives up all members of the predecessor that have not come back, or have not offered all that they have.
    pub(in crate::local) fn give_up_all(&mut self) -> Vec<Effect> {
        let late: Vec<DomId> = std::mem::take(&mut self.unresumed).into_iter().collect();
        for domid in &late {
            self.give_up(*domid);
        }
        late.iter().filter_map(|domid| self.member(*domid)).map(Effect::Disconnect).collect()
    }

    /// Ends the recovery: domains of the predecessor whose members have not come back have lost them. Returns what follows, and how
    /// many domains have their members.
    pub(in crate::local) fn finish_recovery(&mut self) -> (usize, Vec<Effect>) {
        let inherited = std::mem::take(&mut self.inherited);
        let lost = |domid: &&DomId| self.domains.get(domid).is_some_and(|record| !record.has_resumed);
        let lost: Vec<DomId> = inherited.iter().filter(lost).copied().collect();
        let effects = lost.iter().flat_map(|domid| self.leave(*domid)).collect();
        (inherited.len() - lost.len(), effects)
    }

    /// Takes the domains that have changed since the last call, as they are now.
    pub(in crate::local) fn take_changed(&mut self) -> Vec<(DomId, Option<KeptDomain>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|domid| (domid, self.kept_domain(domid))).collect()
    }

    /// What a successor is to know of a domain.
    fn kept_domain(&self, domid: DomId) -> Option<KeptDomain> {
        let record = self.domains.get(&domid)?;
        let uid = record.uids.first().copied().unwrap_or(0);
        Some(KeptDomain { domid, uid, name: record.name.clone(), member: record.kept_member() })
    }

    /// All that a successor is to know.
    pub(in crate::local) fn kept(&self) -> Kept {
        let domains = self.domains.keys().filter_map(|domid| self.kept_domain(*domid)).collect();
        Kept { last: self.last, domains }
    }

    /// The number that was given to a domain last.
    pub(in crate::local) fn last(&self) -> DomId {
        self.last
    }

    pub(super) fn rejoin(&mut self, client: &mut Client, domid: DomId, token: Token) -> Outcome {
        let Some(record) = self.domains.get_mut(&domid) else {
            return fail(Failure::NoDomain, "no such domain");
        };
        let is_known = record.awaited.is_some_and(|member| member.token == token);
        if !is_known || !record.uids.contains(&client.uid) {
            return fail(Failure::Denied, format!("the process is not domain {domid}'s"));
        }
        record.awaited = None;
        client.role = Role::Member(domid);
        record.member = Some(*client);
        record.token = Some(token);
        self.changed.insert(domid);
        Ok(Answer { effects: vec![Effect::Changed(domid)], ..Reply::Done.into() })
    }

    pub(super) fn restore_port(&mut self, me: DomId, port: EventPort) -> Outcome {
        if !self.unresumed.contains(&me) || port.0 == 0 {
            return fail(Failure::Denied, "no port of an earlier broker");
        }
        self.record(me)?.restore_port(me, port)?;
        Ok(Reply::Done.into())
    }

    pub(super) fn resumed(&mut self, me: DomId) -> Outcome {
        if !self.unresumed.remove(&me) {
            return fail(Failure::Denied, "no membership of an earlier broker");
        }
        self.record(me)?.has_resumed = true;
        Ok(Reply::Done.into())
    }

    /// Whether the arenas of a peer that a member had from the predecessor are this broker's too.
    pub(super) fn has_resumed(&mut self, peer: DomId) -> Outcome {
        match self.record(peer)?.has_resumed {
            true => Ok(Reply::Done.into()),
            false => fail(Failure::NoDomain, "the domain's process is not that of the earlier broker"),
        }
    }
}
