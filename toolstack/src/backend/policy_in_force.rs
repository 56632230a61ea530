//! The policy that is in force, which may be replaced by another while devices are connected: all of them are woken then, and look at it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xenbus::driver::Waker;

use crate::config::policy::Policy;

/// A policy that is shared by all backends.
#[derive(Clone, Debug, Default)]
pub struct PolicyInForce(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Counts the policies.
    version: u64,
    policy: Arc<Policy>,
    /// Those of the devices that follow it.
    wakers: BTreeMap<u64, Waker>,
    next: u64,
}

impl PolicyInForce {
    /// The policy that is in force first.
    pub fn new(policy: Policy) -> PolicyInForce {
        PolicyInForce(Arc::new(Mutex::new(State { policy: Arc::new(policy), ..State::default() })))
    }

    /// The policy, and which one it is.
    pub fn current(&self) -> (u64, Arc<Policy>) {
        let state = self.state();
        (state.version, state.policy.clone())
    }

    /// Puts another policy in force, of which all devices learn.
    pub fn replace(&self, policy: Policy) {
        let mut state = self.state();
        state.version += 1;
        state.policy = Arc::new(policy);
        state.wakers.values().for_each(Waker::wake);
    }

    /// Wakes a device with each other policy from now on, until what is returned is dropped.
    pub fn follow(&self, waker: Waker) -> Following {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.wakers.insert(number, waker);
        Following { policy: self.clone(), number }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device that is woken with each other policy.
#[derive(Debug)]
pub struct Following {
    policy: PolicyInForce,
    number: u64,
}

impl Following {
    /// The policy, and which one it is.
    pub fn current(&self) -> (u64, Arc<Policy>) {
        self.policy.current()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.policy.state().wakers.remove(&self.number);
    }
}
