//! Page transfer as a model: it writes down who owns each page, and moves pages on no other path than the one they take.
#![allow(unsafe_code)] // Makes values whose contract is that their memory stays mapped.

use grant_table::{AcceptTransfer, Error, OwnedPage, PageAcceptor, PageDonor, PageOwner, Result, TransferOp};
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who has a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    /// The acceptor, which does not use it.
    AcceptorFree,
    /// The acceptor, which took it out of an entry.
    AcceptorUses,
    /// Nobody: given up by the acceptor, for the donor to take over.
    GivenUp,
    /// The donor, which does not use it.
    DonorFree,
    /// The donor, in its [`OwnedPage`] of this token.
    DonorUses(u64),
    /// Transferred into an entry and not taken out yet.
    InEntry,
}

/// An entry that accepts pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    /// It accepts none until it is armed.
    Idle,
    Accepts,
    Has(usize),
}

#[derive(Default)]
struct State {
    owners: Vec<Owner>,
    entries: Vec<Entry>,
    last_token: u64,
}

impl State {
    /// Changes a page's owner.
    ///
    /// # Panics
    /// If its owner is not `from`: the page would then belong to two, or to nobody.
    fn pass(&mut self, frame: usize, from: Owner, to: Owner) {
        assert_eq!(self.owners[frame], from, "page {frame} was to become {to:?}");
        self.owners[frame] = to;
    }

    /// The first page with this owner.
    fn find(&self, owner: Owner) -> Option<usize> {
        self.owners.iter().position(|found| *found == owner)
    }

    /// Whether the donor has a page in this use.
    fn donor_uses(&self, frame: usize, token: u64) -> bool {
        self.owners.get(frame) == Some(&Owner::DonorUses(token))
    }

    fn transfer(&mut self, op: &TransferOp) -> std::result::Result<(), Status> {
        let entry = self.entries.get(op.gref.0 as usize).copied().ok_or(Status::BAD_GNTREF)?;
        let frame = usize::try_from(op.frame)
            .ok()
            .filter(|frame| self.donor_uses(*frame, op.token))
            .ok_or(Status::BAD_PAGE)?;
        if entry != Entry::Accepts {
            return Err(Status::GENERAL_ERROR);
        }
        self.owners[frame] = Owner::InEntry;
        self.entries[op.gref.0 as usize] = Entry::Has(frame);
        Ok(())
    }
}

/// A page of memory, which never moves.
#[repr(align(4096))]
struct Page(UnsafeCell<[u8; PAGE_SIZE]>);

/// The pages of one acceptor and one donor. Both traits of page transfer are implemented for `Arc`s of it; the domain
/// numbers that they are given are not looked at, as there are no other domains.
pub struct PageOwnership {
    state: Mutex<State>,
    memory: Box<[Page]>,
}

// SAFETY: the pages are accessed by way of `OwnedPage` only, whose memory anybody may write.
unsafe impl Send for PageOwnership {}
// SAFETY: as above.
unsafe impl Sync for PageOwnership {}

/// The acceptor's view.
pub struct ModelAcceptor(pub Arc<PageOwnership>);

/// The donor's view.
pub struct ModelDonor(pub Arc<PageOwnership>);

impl PageOwnership {
    /// An acceptor with `pages` free pages, and a donor with none.
    pub fn new(pages: usize) -> Arc<PageOwnership> {
        let state = State { owners: vec![Owner::AcceptorFree; pages], ..State::default() };
        let memory = (0..pages).map(|_| Page(UnsafeCell::new([0; PAGE_SIZE]))).collect();
        Arc::new(PageOwnership { state: Mutex::new(state), memory })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, frame: usize, token: u64, owner: Arc<dyn PageOwner>) -> OwnedPage {
        let base = NonNull::new(self.memory[frame].0.get().cast()).expect("an address");
        // SAFETY: `owner` keeps the memory.
        unsafe { OwnedPage::new(base, frame as u32, token, owner) }
    }
}

impl PageAcceptor for ModelAcceptor {
    fn balloon_out(&self, _peer: DomId, pages: usize) -> Result<usize> {
        let mut state = self.0.state();
        for given_up in 0..pages {
            let Some(frame) = state.find(Owner::AcceptorFree) else { return Ok(given_up) };
            state.pass(frame, Owner::AcceptorFree, Owner::GivenUp);
        }
        Ok(pages)
    }

    fn provide(&self, peer: DomId, entries: usize) -> Result<usize> {
        let state = self.0.state();
        let accepting = state.entries.iter().filter(|entry| **entry == Entry::Accepts).count();
        let is_out =
            |owner: &&Owner| matches!(owner, Owner::GivenUp | Owner::DonorFree | Owner::DonorUses(_));
        let out = state.owners.iter().filter(is_out).count();
        drop(state);
        let missing = (accepting + entries).saturating_sub(out);
        Ok(missing - self.balloon_out(peer, missing)?)
    }

    fn accept_transfer(&self, _peer: DomId, entries: usize) -> Result<Box<dyn AcceptTransfer>> {
        let mut state = self.0.state();
        let first = state.entries.len();
        let last = u32::try_from(first + entries).map_err(|_| Error::NoSpace("grant references"))?;
        state.entries.resize(last as usize, Entry::Accepts);
        let refs = (first as u32..last).map(GrantRef).collect();
        Ok(Box::new(Accepting { model: self.0.clone(), refs }))
    }
}

impl PageDonor for ModelDonor {
    fn populate(&self, _peer: DomId, pages: usize, into: &mut Vec<OwnedPage>) -> Result<()> {
        let mut state = self.0.state();
        for _ in 0..pages {
            let from = [Owner::DonorFree, Owner::GivenUp];
            let found = from.into_iter().find_map(|owner| Some((owner, state.find(owner)?)));
            let Some((owner, frame)) = found else { break };
            state.last_token += 1;
            let token = state.last_token;
            state.pass(frame, owner, Owner::DonorUses(token));
            into.push(self.0.page(frame, token, Arc::new(ModelDonor(self.0.clone()))));
        }
        Ok(())
    }

    fn transfer(&self, ops: &mut [TransferOp]) -> Result<()> {
        let mut state = self.0.state();
        for op in ops {
            op.status = state.transfer(op).err().unwrap_or(Status::OKAY);
        }
        Ok(())
    }
}

impl PageOwner for ModelDonor {
    fn put(&self, frame: u32, token: u64) {
        let mut state = self.0.state();
        let frame = frame as usize;
        // Otherwise it was transferred.
        if state.owners[frame] == Owner::DonorUses(token) {
            state.pass(frame, Owner::DonorUses(token), Owner::DonorFree);
        }
    }
}

impl PageOwner for ModelAcceptor {
    fn put(&self, frame: u32, _token: u64) {
        self.0.state().pass(frame as usize, Owner::AcceptorUses, Owner::AcceptorFree);
    }
}

struct Accepting {
    model: Arc<PageOwnership>,
    refs: Box<[GrantRef]>,
}

impl AcceptTransfer for Accepting {
    fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    fn take(&mut self, index: usize) -> Result<Option<OwnedPage>> {
        let mut state = self.model.state();
        let gref = self.refs[index].0 as usize;
        let Entry::Has(frame) = state.entries[gref] else { return Ok(None) };
        state.entries[gref] = Entry::Idle;
        state.pass(frame, Owner::InEntry, Owner::AcceptorUses);
        Ok(Some(self.model.page(frame, 0, Arc::new(ModelAcceptor(self.model.clone())))))
    }

    fn arm(&mut self, index: usize) {
        let entry = &mut self.model.state().entries[self.refs[index].0 as usize];
        if *entry == Entry::Idle {
            *entry = Entry::Accepts;
        }
    }
}
