//! All queues of a device as a value: which of them a request goes to, and what becomes of those of a queue that a new
//! connection does not have.
//!
//! A queue gets a batch of requests before the next one gets any: few requests are answered by one thread of the backend, which
//! need not be woken for each, and many by all of them. Backends order a barrier after what is on its own ring (as Linux's does),
//! so that it waits for the other rings to be empty, and what follows it goes to its ring while it is in flight. A flush covers
//! what was answered, on whichever ring.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ring_abi::GrantRef;
use ring_abi::blkif::{MAX_INDIRECT_PAGES, OP_WRITE_BARRIER, Request, Response, Status};
use ring_abi::ring::{BadMemory, Notify, Protocol};
use ring_abi::shm::Memory;

use crate::queue::{Fault, Operation, Queue, Segments, is_larger};

/// Requests in flight of a queue before a further one gets any.
const BATCH: usize = 8;

/// One device's queues. `T` is the item that belongs to a request, as in [`Queue`].
///
/// ```
/// use blkfront::queue::Operation;
/// use blkfront::queues::Queues;
/// use ring_abi::blkif::X86_64;
/// # use ring_abi::testing::Pages;
/// # let pages = [Pages::new(1), Pages::new(1)];
///
/// let mut queues: Queues<X86_64, _, u32> = Queues::new();
/// queues.connect(pages.into())?;
/// for item in 0..9 {
///     queues.submit_with(Operation::Flush, 0, item, |_, _| ()).unwrap();
/// }
/// assert_eq!(queues.iter().map(|queue| queue.in_flight()).collect::<Vec<_>>(), [8, 1]);
/// assert!((0..2).all(|number| queues.commit(number).wanted()), "both are to be notified");
/// # Ok::<(), ring_abi::ring::BadMemory>(())
/// ```
#[derive(Debug)]
pub struct Queues<P, M, T> {
    /// One at least.
    queues: Vec<Queue<P, M, T>>,
    /// Requests of queues that there are no more, which found no free slot yet.
    moved: VecDeque<(Request, T)>,
}

impl<P: Protocol<Request = Request, Response = Response>, M: Memory, T> Default for Queues<P, M, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Protocol<Request = Request, Response = Response>, M: Memory, T> Queues<P, M, T> {
    /// One queue, without a ring and without slots.
    pub fn new() -> Self {
        Self { queues: [Queue::new(0)].into(), moved: VecDeque::new() }
    }

    /// Initialises a new ring in each of `memories`, and pushes all unanswered requests again. To be committed once the backend is
    /// connected.
    ///
    /// # Errors
    /// [`BadMemory`] if one of them cannot be a ring, or there is none.
    pub fn connect(&mut self, memories: Vec<M>) -> Result<(), BadMemory> {
        let count = memories.len().max(1);
        for queue in self.queues.drain(count.min(self.queues.len())..) {
            self.moved.extend(queue.into_requests());
        }
        self.queues.resize_with(count, || Queue::new(0));
        for (queue, memory) in self.queues.iter_mut().zip(memories) {
            queue.connect(memory)?;
        }
        self.send_moved();
        Ok(())
    }

    /// Gives the rings' memory back, the backend being gone. Requests in flight stay in flight.
    pub fn disconnect(&mut self) -> Vec<M> {
        self.queues.iter_mut().filter_map(Queue::disconnect).collect()
    }

    /// Whether there are rings.
    pub fn is_connected(&self) -> bool {
        self.queues.iter().all(Queue::is_connected)
    }

    /// The queues.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Queue<P, M, T>> {
        self.queues.iter()
    }

    /// Requests in flight.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.queues.iter().map(Queue::in_flight).sum::<usize>() + self.moved.len()
    }

    /// Requests that can be in flight at once.
    pub fn size(&self) -> u32 {
        self.queues.iter().map(Queue::size).sum()
    }

    /// Submits a request, as [`Queue::submit_with`] does.
    ///
    /// # Errors
    /// Gives the item back if the rings are full, or if it is a barrier and there are requests on other rings than its own: it is
    /// to be submitted again when some have completed.
    #[inline]
    pub fn submit_with(
        &mut self,
        operation: Operation,
        sector: u64,
        item: T,
        push: impl FnOnce(&T, &mut Segments),
    ) -> Result<(), T> {
        match self.choose(operation == Operation::Barrier) {
            Some(queue) => queue.submit_with(operation, sector, item, push),
            None => Err(item),
        }
    }

    /// Submits a read or write with pages of segments, as [`Queue::submit_indirect`] does.
    ///
    /// # Errors
    /// As [`Queues::submit_with`].
    pub fn submit_indirect(
        &mut self,
        operation: Operation,
        sector: u64,
        item: T,
        describe: impl FnOnce(&T) -> (u16, [GrantRef; MAX_INDIRECT_PAGES]),
    ) -> Result<(), T> {
        match self.choose(false) {
            Some(queue) => queue.submit_indirect(operation, sector, item, describe),
            None => Err(item),
        }
    }

    /// Submits a discard of so many sectors, as [`Queue::submit_discard`] does.
    ///
    /// # Errors
    /// As [`Queues::submit_with`].
    pub fn submit_discard(&mut self, sector: u64, sectors: u64, item: T) -> Result<(), T> {
        match self.choose(false) {
            Some(queue) => queue.submit_discard(sector, sectors, item),
            None => Err(item),
        }
    }

    /// Gives up the requests in flight that have more than so many segments, and gives back their items. To be called without
    /// rings: the next backend does not support them.
    pub fn remove_larger(&mut self, segments: u16) -> Vec<T> {
        let mut items: Vec<_> =
            self.queues.iter_mut().flat_map(|queue| queue.remove_larger(segments)).collect();
        for (request, item) in core::mem::take(&mut self.moved) {
            if is_larger(&request, segments) {
                items.push(item);
            } else {
                self.moved.push_back((request, item));
            }
        }
        items
    }

    /// The queue for the next request, if it may be submitted now.
    #[inline]
    fn choose(&mut self, is_barrier: bool) -> Option<&mut Queue<P, M, T>> {
        if !self.moved.is_empty() {
            return None;
        }
        match self.queues.len() {
            1 => self.queues.first_mut(),
            _ => self.choose_of_several(is_barrier),
        }
    }

    fn choose_of_several(&mut self, is_barrier: bool) -> Option<&mut Queue<P, M, T>> {
        if let Some(number) = self.queues.iter().position(Queue::has_barrier) {
            return self.queues.get_mut(number);
        }
        if is_barrier {
            let mut busy = (0..self.queues.len()).filter(|number| self.queues[*number].in_flight() > 0);
            let number = busy.next().unwrap_or(0);
            return if busy.next().is_none() { self.queues.get_mut(number) } else { None };
        }
        self.queues.iter_mut().min_by_key(|queue| queue.in_flight() / BATCH)
    }

    /// Submits requests of queues that there are no more, as many as there is room for.
    #[cold]
    fn send_moved(&mut self) {
        let mut moved = core::mem::take(&mut self.moved);
        while let Some((request, item)) = moved.pop_front() {
            let submitted = match self.choose(request.operation() == OP_WRITE_BARRIER) {
                Some(queue) => queue.submit_again(&request, item),
                None => Err(item),
            };
            if let Err(item) = submitted {
                moved.push_front((request, item));
                break;
            }
        }
        self.moved = moved;
    }

    /// Whether [`Queues::commit`] would publish requests of any queue.
    #[inline]
    pub fn has_uncommitted(&mut self) -> bool {
        if !self.moved.is_empty() {
            self.send_moved();
        }
        self.queues.iter().any(Queue::has_uncommitted)
    }

    /// Publishes the requests pushed to the queue of this number, below [`Queues::iter`]'s length; returns whether the backend is to
    /// be notified of them.
    #[inline]
    pub fn commit(&mut self, number: usize) -> Notify {
        if !self.moved.is_empty() {
            self.send_moved();
        }
        self.queues[number].commit()
    }

    /// Takes the responses that are there, of each queue as [`Queue::poll`] does; returns how many.
    ///
    /// # Errors
    /// [`Fault`] at the first impossible response, of which no item is given: close this device.
    #[inline]
    pub fn poll(&mut self, mut completed: impl FnMut(T, Status)) -> Result<usize, Fault> {
        self.queues.iter_mut().try_fold(0, |count, queue| Ok(count + queue.poll(&mut completed)?))
    }

    /// Sets the rings' event indexes, so that the next completion is notified; `true` if there is one already.
    ///
    /// # Errors
    /// [`Fault::Ring`]: close this device.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        self.queues.iter_mut().try_fold(false, |any, queue| Ok(queue.arm()? || any))
    }

    /// Drops the rings and gives back the items of all requests in flight.
    pub fn abandon(&mut self) -> Vec<T> {
        let of_queues = self.queues.iter_mut().flat_map(Queue::abandon);
        let moved = self.moved.drain(..).map(|(_, item)| item);
        of_queues.chain(moved).collect()
    }
}

#[cfg(test)]
mod tests;
