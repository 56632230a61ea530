//! What a store keeps for a successor in case it is killed: [`Core::image`] once, and then [`Core::take_journal`] before any
//! reply is sent.

use std::collections::BTreeSet;

use ring_abi::DomId;

use super::Core;
use super::domain::Domain;
use super::journal::{Image, frame};
use super::quota::Quotas;
use super::record::{DomainRecord, Record};

/// The changes that are not taken yet.
#[derive(Default)]
pub(super) struct Journal {
    is_kept: bool,
    /// Whole frames.
    frames: Vec<u8>,
    /// The records of the present request.
    content: Vec<u8>,
    domains: BTreeSet<DomId>,
    quotas: bool,
}

impl Journal {
    /// A domain has changed but for its nodes, or is gone.
    pub(super) fn note(&mut self, domid: DomId) {
        if self.is_kept {
            self.domains.insert(domid);
        }
    }

    /// The quotas of new domains have changed.
    pub(super) fn note_quotas(&mut self) {
        self.quotas = self.is_kept;
    }
}

impl Core {
    /// Makes the store that another one was, but for its connections. `quotas` are dom0's, which no quota limits.
    pub fn restore(image: Image, quotas: Quotas) -> Core {
        let mut core = Core::new(quotas);
        core.tree = image.tree;
        core.generation = image.generation;
        core.quotas = image.quotas;
        for (domid, record) in image.domains.into_iter().filter(|(domid, _)| *domid != DomId::DOM0) {
            let DomainRecord { introduced, target, features, quotas, .. } = record;
            let domain = Domain { introduced, target, features, ..Domain::new(domid, quotas) };
            core.domains.insert(domid, domain);
        }
        core
    }

    /// Records changes from now on, and returns what they change.
    pub fn keep(&mut self) -> Image {
        self.tree.record();
        self.journal.is_kept = true;
        self.image()
    }

    /// Records changes no more.
    pub fn stop_keeping(&mut self) {
        self.tree.stop_recording();
        self.journal = Journal::default();
    }

    /// All that the store holds now. Takes time in proportion to the number of domains, not of nodes.
    pub fn image(&self) -> Image {
        let domains = self.domains.keys().filter(|domid| **domid != DomId::DOM0);
        let domains = domains.filter_map(|domid| Some((*domid, self.domain_record(*domid)?))).collect();
        Image { tree: self.tree.branch(), generation: self.generation, domains, quotas: self.quotas }
    }

    /// Appends the frames of the changes since the last call to `out`. Each has all changes of one request.
    pub fn take_journal(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.journal.frames);
    }

    /// Ends the frame of a request, if it has changed anything.
    pub(super) fn end_frame(&mut self) {
        self.tree.take_records(&mut self.journal.content);
        for domid in std::mem::take(&mut self.journal.domains) {
            let record = match self.domain_record(domid) {
                Some(record) => Record::Domain(record),
                None => Record::Released(domid),
            };
            record.encode(&mut self.journal.content);
        }
        if std::mem::take(&mut self.journal.quotas) {
            Record::Quotas(self.quotas).encode(&mut self.journal.content);
        }
        let Journal { frames, content, .. } = &mut self.journal;
        if !content.is_empty() {
            frame(frames, content);
            content.clear();
        }
    }

    fn domain_record(&self, domid: DomId) -> Option<DomainRecord> {
        let Domain { introduced, target, features, allowance, .. } = self.domains.get(&domid)?;
        let (introduced, target, features, quotas) = (*introduced, *target, *features, allowance.quotas);
        Some(DomainRecord { domid, introduced, target, features, quotas })
    }
}
