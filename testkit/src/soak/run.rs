//! Runs a soak, and says how to repeat it.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use super::figures::{Baseline, Figure};
use super::plan::Plan;
use super::state::{State, Step};

/// How long a check of resources waits before the next one.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Steps that are shown of those before the one that failed.
const SHOWN_STEPS: usize = 5;

const SEED: &str = "XPV_SOAK_SEED";
const FROM: &str = "XPV_SOAK_FROM";
const OPERATIONS: &str = "XPV_SOAK_OPERATIONS";

/// A machine on which steps are carried out.
pub trait Executor {
    /// How long resources may take to be given back.
    const SETTLE: Duration = Duration::from_secs(10);

    /// Carries out a step's operations at the same time, and brings the machine to the state after it: operations that
    /// another dom0 interrupted are checked to have left nothing, and repeated.
    ///
    /// # Errors
    /// An operation that was to succeed has failed, or the reverse.
    fn perform(&mut self, step: &Step, before: &State) -> Result<(), String>;

    /// Checks that every device of a state is connected and usable, that no other exists at either end, and that images
    /// that no device has are free.
    ///
    /// # Errors
    /// What is not so.
    fn check(&mut self, state: &State) -> Result<(), String>;

    /// What the machine holds in a state. A process that has started and served nothing yet holds too little to be compared
    /// with: its figures are left out.
    fn figures(&mut self, state: &State) -> Vec<Figure>;
}

/// What part of which plan is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The plan's seed.
    pub seed: u64,
    /// The step to begin with.
    pub from: usize,
    /// Operations after which the run ends.
    pub operations: usize,
}

impl Settings {
    /// Reads the environment variables `XPV_SOAK_SEED`, `XPV_SOAK_FROM` and `XPV_SOAK_OPERATIONS`: by default a random
    /// seed, from its first step, for so many operations.
    ///
    /// # Panics
    /// If one is not a number.
    pub fn from_environment(operations: usize) -> Settings {
        fn read<T: std::str::FromStr<Err: Debug>>(name: &str) -> Option<T> {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error:?}")))
        }
        Settings {
            seed: read(SEED).unwrap_or_else(rand::random),
            from: read(FROM).unwrap_or(0),
            operations: read(OPERATIONS).unwrap_or(operations),
        }
    }
}

/// Carries out steps until their operations are as many as wanted.
///
/// # Panics
/// If a step fails, with the seed and the step.
pub fn run(executor: &mut impl Executor, settings: Settings) {
    let Settings { seed, from, operations } = settings;
    println!("{SEED}={seed} {FROM}={from} {OPERATIONS}={operations}");
    let mut plan = Plan::new(seed);
    (0..from).for_each(|_| drop(plan.next_step()));
    let mut baseline = Baseline::default();
    let mut last = VecDeque::new();
    let mut done = 0;
    let start = Instant::now();
    // A long run is not to keep its steps in memory.
    let shows_all = std::env::var_os("RUST_LOG").is_some();
    carry_out(executor, &mut baseline, &plan.state().creation(), &State::default(), plan.state())
        .unwrap_or_else(|error| panic!("the state before step {from} of seed {seed}: {error}"));
    while done < operations {
        let before = plan.state().clone();
        let number = plan.number();
        let step = plan.next_step();
        last.push_back(format!("  step {number} after {:?}: {step:?}\n", start.elapsed()));
        last.drain(..last.len().saturating_sub(SHOWN_STEPS));
        if let (true, Some(step)) = (shows_all, last.back()) {
            print!("{step}");
        }
        carry_out(executor, &mut baseline, &step, &before, plan.state()).unwrap_or_else(|error| {
            let shown: String = last.iter().map(String::as_str).collect();
            panic!(
                "{error}\n{shown}  before it: {before:?}\n  to repeat all: {SEED}={seed} {FROM}={from} \
                 {OPERATIONS}={operations}; only this step: {SEED}={seed} {FROM}={number} {OPERATIONS}=1"
            )
        });
        done += step.len();
    }
    println!("{done} operations in {} steps, {:?}", plan.number() - from, start.elapsed());
}

fn carry_out<E: Executor>(
    executor: &mut E,
    baseline: &mut Baseline,
    step: &Step,
    before: &State,
    after: &State,
) -> Result<(), String> {
    executor.perform(step, before)?;
    executor.check(after)?;
    settle(executor, baseline, after)
}

/// Waits until a machine holds no more than it held before with as many devices.
fn settle<E: Executor>(executor: &mut E, baseline: &mut Baseline, state: &State) -> Result<(), String> {
    let deadline = Instant::now() + E::SETTLE;
    loop {
        let Err(excess) = baseline.check(&executor.figures(state)) else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(format!("not given back within {:?}: {excess}", E::SETTLE));
        }
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::state::Operation;

    /// A machine that does what it is told, and leaks a descriptor with each detached disk if so made.
    #[derive(Default)]
    struct Fake {
        state: State,
        steps: Vec<Step>,
        leaks: bool,
        leaked: usize,
    }

    impl Executor for Fake {
        const SETTLE: Duration = Duration::ZERO;

        fn perform(&mut self, step: &Step, before: &State) -> Result<(), String> {
            assert_eq!(self.state, *before);
            self.state = before.after(step);
            self.steps.push(step.clone());
            let detached = step.operations.iter().filter(|o| matches!(o, Operation::DetachDisk(..)));
            self.leaked += if self.leaks { detached.count() } else { 0 };
            Ok(())
        }

        fn check(&mut self, state: &State) -> Result<(), String> {
            assert_eq!(self.state, *state);
            Ok(())
        }

        fn figures(&mut self, state: &State) -> Vec<Figure> {
            let counts = state.counts();
            vec![Figure::exact(format!("descriptors {counts:?}"), counts.iter().sum::<usize>() + self.leaked)]
        }
    }

    #[test]
    fn run_that_begins_at_a_step_does_what_the_whole_run_did_from_there_on() {
        let mut whole = Fake::default();
        let settings = Settings { seed: 3, from: 0, operations: 200 };
        run(&mut whole, settings);
        let mut rest = Fake::default();
        run(&mut rest, Settings { from: 10, operations: 100, ..settings });
        // The first makes the state that the run begins with.
        let (whole_steps, rest) = (&whole.steps[1..], &rest.steps[1..]);
        assert!(rest == &whole_steps[10..10 + rest.len()], "{rest:?}");
        let operations: usize = whole.steps.iter().map(Step::len).sum();
        assert!((200..210).contains(&operations), "{operations}");
    }

    #[test]
    #[should_panic(expected = "not given back")]
    fn run_fails_if_something_grows() {
        run(&mut Fake { leaks: true, ..Fake::default() }, Settings { seed: 3, from: 0, operations: 1000 });
    }
}
