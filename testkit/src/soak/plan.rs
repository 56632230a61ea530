//! The steps of a soak, from a seed.

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{RngExt, SeedableRng};

use super::state::{
    BadDisk, DISKS, GUESTS, Guest, IMAGES, Interruption, Operation, Slot, State, Step, VIFS, Victim,
};

/// Most operations at the same time.
const MOST_OPERATIONS: usize = 8;
/// Choices that may turn out to be impossible in a state before a step has fewer operations than it was to have.
const TRIES: usize = 20;
/// Of a thousand steps, those in which dom0 is killed, told to exit, and a guest is killed.
const DOM0_KILLED: u32 = 40;
const DOM0_EXITS: u32 = 15;
const GUEST_KILLED: u32 = 60;
/// Of a thousand steps, those in which all guests are destroyed.
const ALL_DESTROYED: u32 = 20;

/// The steps of a seed: the same in every run.
#[derive(Clone, Debug)]
pub struct Plan {
    random: SmallRng,
    state: State,
    number: usize,
}

impl Plan {
    /// The steps of this seed, on a machine without guests.
    pub fn new(seed: u64) -> Plan {
        Plan { random: SmallRng::seed_from_u64(seed), state: State::default(), number: 0 }
    }

    /// What exists before the next step.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The number of steps so far.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Makes the next step.
    pub fn next_step(&mut self) -> Step {
        let step = Draft::new(&self.state, &mut self.random).step();
        self.state = self.state.after(&step);
        self.number += 1;
        step
    }
}

/// A step in the making: what its operations concern is not concerned by another.
struct Draft<'p> {
    state: &'p State,
    random: &'p mut SmallRng,
    operations: Vec<Operation>,
    interruption: Option<Interruption>,
    /// The guests that are created, destroyed or killed.
    guests: Vec<usize>,
    disks: Vec<Slot>,
    vifs: Vec<Slot>,
    images: Vec<usize>,
}

impl<'p> Draft<'p> {
    fn new(state: &'p State, random: &'p mut SmallRng) -> Draft<'p> {
        let lists = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (guests, disks, vifs, images) = lists;
        Draft { state, random, operations: Vec::new(), interruption: None, guests, disks, vifs, images }
    }

    fn step(mut self) -> Step {
        if self.random.random_ratio(ALL_DESTROYED, 1000) && self.state.guests().next().is_some() {
            let operations = self.state.guests().map(|(guest, _)| Operation::Destroy(guest)).collect();
            return Step { operations, interruption: None };
        }
        self.interruption = self.interrupt();
        let wanted = self.random.random_range(1..=MOST_OPERATIONS);
        for _ in 0..TRIES {
            if self.operations.len() == wanted {
                break;
            }
            let operation = self.operation();
            self.operations.extend(operation);
        }
        Step { operations: self.operations, interruption: self.interruption }
    }

    fn interrupt(&mut self) -> Option<Interruption> {
        let chosen = self.random.random_range(0..1000);
        let moment = self.random.random_range(0..1500);
        let victim = match chosen {
            _ if chosen < DOM0_KILLED => Victim::Dom0,
            _ if chosen < DOM0_KILLED + DOM0_EXITS => Victim::Dom0Exits,
            _ if chosen < DOM0_KILLED + DOM0_EXITS + GUEST_KILLED => {
                let (guest, _) = self.state.guests().choose(self.random)?;
                Victim::Guest(guest)
            }
            _ => return None,
        };
        Some(Interruption { victim, moment })
    }

    fn operation(&mut self) -> Option<Operation> {
        let force = self.random.random_ratio(1, 8);
        match self.random.random_range(0..100) {
            0..8 => self.create(),
            _ if self.state.guests().next().is_none() => self.create(),
            8..11 => self.create_bad(),
            11..15 => self.destroy(),
            15..40 => self.free_disk().zip(self.free_image()).map(|(slot, image)| self.attach(slot, image)),
            40..62 => self.taken_disk().map(|slot| self.use_disk(slot, Operation::DetachDisk(slot, force))),
            62..72 => self.attach_bad(),
            72..75 => self.taken_disk().map(|slot| self.use_disk(slot, Operation::AttachTakenDisk(slot))),
            75..77 => self.vif(true).map(|slot| self.use_vif(slot, Operation::AttachTakenVif(slot))),
            77..89 => self.vif(false).map(|slot| self.use_vif(slot, Operation::AttachVif(slot))),
            _ => self.vif(true).map(|slot| self.use_vif(slot, Operation::DetachVif(slot, force))),
        }
    }

    fn create(&mut self) -> Option<Operation> {
        let guest = self.free_guest()?;
        self.guests.push(guest);
        let mut devices = Guest::default();
        for number in 0..DISKS {
            if self.random.random_ratio(1, 3)
                && let Some(image) = self.free_image()
            {
                self.images.push(image);
                devices.disks[number] = Some(image);
            }
        }
        devices.vifs = [(); VIFS].map(|()| self.random.random_ratio(1, 3));
        Some(Operation::Create(guest, devices))
    }

    fn create_bad(&mut self) -> Option<Operation> {
        let guest = self.free_guest()?;
        let bad = self.bad_disk()?;
        self.guests.push(guest);
        Some(Operation::CreateBad(guest, bad))
    }

    fn destroy(&mut self) -> Option<Operation> {
        let is_touched = |guest| self.operations.iter().any(|operation| operation.guest() == guest);
        let is_needed = |guest| self.images_of(guest).any(|image| self.images.contains(&image));
        let choices = (0..GUESTS).filter(|guest| {
            self.state.guests[*guest].is_some()
                && !self.is_killed(*guest)
                && !self.guests.contains(guest)
                && !is_touched(*guest)
                && !is_needed(*guest)
        });
        let choices: Vec<usize> = choices.collect();
        let guest = *choices.choose(self.random)?;
        let images: Vec<usize> = self.images_of(guest).collect();
        self.images.extend(images);
        self.guests.push(guest);
        Some(Operation::Destroy(guest))
    }

    fn images_of(&self, guest: usize) -> impl Iterator<Item = usize> {
        self.state.disks().filter(move |(slot, _)| slot.guest == guest).map(|(_, image)| image)
    }

    fn attach(&mut self, slot: Slot, image: usize) -> Operation {
        self.images.push(image);
        self.use_disk(slot, Operation::AttachDisk(slot, image))
    }

    fn attach_bad(&mut self) -> Option<Operation> {
        let slot = self.free_disk()?;
        let bad = self.bad_disk()?;
        Some(self.use_disk(slot, Operation::AttachBadDisk(slot, bad)))
    }

    fn use_disk(&mut self, slot: Slot, operation: Operation) -> Operation {
        self.disks.push(slot);
        self.images.extend(self.state.image(slot));
        operation
    }

    fn use_vif(&mut self, slot: Slot, operation: Operation) -> Operation {
        self.vifs.push(slot);
        operation
    }

    fn bad_disk(&mut self) -> Option<BadDisk> {
        match self.random.random_range(0..3) {
            0 => Some(BadDisk::Short),
            1 => Some(BadDisk::Missing),
            // The image must be in use all the time: a dom0 that starts may open it for either device.
            _ if self.interruption.is_some() => None,
            _ => {
                let used = self.state.disks().filter(|(slot, image)| {
                    !self.images.contains(image) && !self.guests.contains(&slot.guest)
                });
                let (_, image) = used.collect::<Vec<_>>().choose(self.random).copied()?;
                self.images.push(image);
                Some(BadDisk::InUse(image))
            }
        }
    }

    fn is_killed(&self, guest: usize) -> bool {
        self.interruption.is_some_and(|interruption| interruption.victim == Victim::Guest(guest))
    }

    fn free_guest(&mut self) -> Option<usize> {
        let is_free = |guest: &usize| self.state.guests[*guest].is_none() && !self.guests.contains(guest);
        let choices: Vec<usize> = (0..GUESTS).filter(is_free).collect();
        choices.choose(self.random).copied()
    }

    fn free_image(&mut self) -> Option<usize> {
        let is_free = |image: &usize| self.state.user(*image).is_none() && !self.images.contains(image);
        let choices: Vec<usize> = (0..IMAGES).filter(is_free).collect();
        choices.choose(self.random).copied()
    }

    fn free_disk(&mut self) -> Option<Slot> {
        self.disk(|state, slot| state.image(slot).is_none())
    }

    /// A disk whose image is not to stay in use.
    fn taken_disk(&mut self) -> Option<Slot> {
        let kept = self.images.clone();
        self.disk(|state, slot| state.image(slot).is_some_and(|image| !kept.contains(&image)))
    }

    fn disk(&mut self, is: impl Fn(&State, Slot) -> bool) -> Option<Slot> {
        let slots = self.slots(DISKS).filter(|slot| !self.disks.contains(slot) && is(self.state, *slot));
        let choices: Vec<Slot> = slots.collect();
        choices.choose(self.random).copied()
    }

    fn vif(&mut self, exists: bool) -> Option<Slot> {
        let slots =
            self.slots(VIFS).filter(|slot| !self.vifs.contains(slot) && self.state.has_vif(*slot) == exists);
        let choices: Vec<Slot> = slots.collect();
        choices.choose(self.random).copied()
    }

    /// The slots of all guests that neither begin nor are destroyed.
    fn slots(&self, numbers: usize) -> impl Iterator<Item = Slot> {
        let guests = self.state.guests().map(|(guest, _)| guest).filter(|guest| !self.guests.contains(guest));
        guests.flat_map(move |guest| (0..numbers).map(move |number| Slot { guest, number }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Checks that a step is possible in a state, and that its operations do not concern the same thing.
    fn check(state: &State, step: &Step) {
        let mut things = BTreeSet::new();
        let mut once = |what: &str, n: usize| assert!(things.insert(format!("{what} {n}")), "{step:?}");
        for operation in &step.operations {
            use Operation::*;
            let image = |slot: Slot| state.image(slot).expect("a disk");
            match operation {
                Create(guest, devices) => {
                    assert!(state.guests[*guest].is_none());
                    once("guest", *guest);
                    devices.disks.iter().flatten().for_each(|image| {
                        assert_eq!(state.user(*image), None);
                        once("image", *image);
                    });
                }
                CreateBad(guest, _) => {
                    assert!(state.guests[*guest].is_none());
                    once("guest", *guest);
                }
                Destroy(guest) => {
                    assert!(state.guests[*guest].is_some() && !step.ends(Victim::Guest(*guest)));
                    once("guest", *guest);
                    assert!(step.operations.iter().filter(|other| other.guest() == *guest).count() == 1);
                    let disks = state.disks().filter(|(slot, _)| slot.guest == *guest);
                    disks.for_each(|(_, image)| once("image", image));
                }
                AttachDisk(slot, image) => {
                    assert!(state.image(*slot).is_none() && state.user(*image).is_none());
                    once("image", *image);
                }
                AttachTakenDisk(slot) | DetachDisk(slot, _) => once("image", image(*slot)),
                AttachBadDisk(slot, _) => assert!(state.image(*slot).is_none()),
                AttachVif(slot) => assert!(!state.has_vif(*slot)),
                AttachTakenVif(slot) | DetachVif(slot, _) => assert!(state.has_vif(*slot)),
            }
            match operation {
                AttachDisk(slot, _)
                | AttachTakenDisk(slot)
                | DetachDisk(slot, _)
                | AttachBadDisk(slot, _) => {
                    once("disk", slot.guest * DISKS + slot.number);
                }
                AttachVif(slot) | AttachTakenVif(slot) | DetachVif(slot, _) => {
                    once("vif", slot.guest * VIFS + slot.number);
                }
                _ => {}
            }
            if let CreateBad(_, BadDisk::InUse(image)) | AttachBadDisk(_, BadDisk::InUse(image)) = operation {
                assert!(state.user(*image).is_some() && step.interruption.is_none());
                once("image", *image);
            }
        }
    }

    #[test]
    fn every_step_is_possible_and_every_operation_occurs() {
        let mut kinds = BTreeSet::new();
        let mut victims = BTreeSet::new();
        for seed in 0..50 {
            let mut plan = Plan::new(seed);
            for number in 0..400 {
                assert_eq!(plan.number(), number);
                let before = plan.state().clone();
                let step = plan.next_step();
                check(&before, &step);
                assert_eq!(*plan.state(), before.after(&step));
                let images: Vec<usize> = plan.state().disks().map(|(_, image)| image).collect();
                assert_eq!(
                    images.iter().collect::<BTreeSet<_>>().len(),
                    images.len(),
                    "an image has one user"
                );
                let name = |text: String| text.split(['(', ' ']).next().unwrap_or_default().to_owned();
                kinds.extend(step.operations.iter().map(|operation| name(format!("{operation:?}"))));
                victims
                    .extend(step.interruption.map(|interruption| name(format!("{:?}", interruption.victim))));
            }
        }
        assert_eq!(kinds.len(), 10, "{kinds:?}");
        assert_eq!(victims.len(), 3, "{victims:?}");
    }

    #[test]
    fn steps_depend_on_the_seed_alone() {
        let steps = |seed| {
            let mut plan = Plan::new(seed);
            (0..200).map(|_| plan.next_step()).collect::<Vec<_>>()
        };
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }
}
