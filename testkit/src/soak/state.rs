//! The operations of a soak, and the state of a machine before and after them.

/// Guests that may exist at the same time.
pub const GUESTS: usize = 3;
/// Disks that a guest may have.
pub const DISKS: usize = 3;
/// Interfaces that a guest may have.
pub const VIFS: usize = 2;
/// Images: fewer than there are slots for disks, so that they change their guests.
pub const IMAGES: usize = 7;

/// The place of a disk or of an interface in a guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot {
    /// The guest's index.
    pub guest: usize,
    /// The index among the guest's disks, or among its interfaces.
    pub number: usize,
}

/// Why a disk cannot be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadDisk {
    /// The image has not one sector.
    Short,
    /// There is no image.
    Missing,
    /// The image of this index is another device's.
    InUse(usize),
}

/// One operation of a toolstack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Creates a guest with these devices.
    Create(usize, Guest),
    /// Creates a guest with a disk that it cannot have: no guest remains.
    CreateBad(usize, BadDisk),
    /// Destroys a guest.
    Destroy(usize),
    /// Attaches the image of this index.
    AttachDisk(Slot, usize),
    /// Attaches a disk that cannot be attached to a free slot: nothing remains.
    AttachBadDisk(Slot, BadDisk),
    /// Attaches a disk or interface to a slot that is taken: the device there stays.
    AttachTakenDisk(Slot),
    /// As for disks.
    AttachTakenVif(Slot),
    /// Detaches a disk; insists, if so said.
    DetachDisk(Slot, bool),
    /// Attaches an interface.
    AttachVif(Slot),
    /// Detaches an interface; insists, if so said.
    DetachVif(Slot, bool),
}

/// What ends while operations are carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    /// Dom0 is killed; another one starts.
    Dom0,
    /// Dom0 is told to exit; another one starts.
    Dom0Exits,
    /// A guest is killed.
    Guest(usize),
}

/// The end of a domain, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interruption {
    /// What ends.
    pub victim: Victim,
    /// When, in thousandths of the time that the executor's operations usually take.
    pub moment: u32,
}

/// Operations that are carried out at the same time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// Each concerns a slot, and an image, of its own.
    pub operations: Vec<Operation>,
    /// What ends meanwhile.
    pub interruption: Option<Interruption>,
}

impl Step {
    /// The number of operations; the end of a domain is one too.
    pub fn len(&self) -> usize {
        self.operations.len() + usize::from(self.interruption.is_some())
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this is what ends in the step.
    pub fn ends(&self, victim: Victim) -> bool {
        self.interruption.is_some_and(|interruption| interruption.victim == victim)
    }

    /// The disks of a state that no operation detaches or destroys, with their images. A guest that is killed may have some.
    pub fn untouched_disks(&self, before: &State) -> Vec<(Slot, usize)> {
        let removes = |operation: &Operation, disk: Slot| match operation {
            Operation::Destroy(guest) => *guest == disk.guest,
            Operation::DetachDisk(slot, _) => *slot == disk,
            _ => false,
        };
        let is_untouched = |disk: Slot| !self.operations.iter().any(|operation| removes(operation, disk));
        before.disks().filter(|(slot, _)| is_untouched(*slot)).collect()
    }

    /// Whether another dom0 starts in the step: any of its operations may then fail.
    pub fn replaces_dom0(&self) -> bool {
        self.ends(Victim::Dom0) || self.ends(Victim::Dom0Exits)
    }
}

impl Operation {
    /// The guest's index.
    pub fn guest(&self) -> usize {
        use Operation::*;
        match self {
            Create(guest, _) | CreateBad(guest, _) | Destroy(guest) => *guest,
            AttachDisk(slot, _)
            | AttachBadDisk(slot, _)
            | AttachTakenDisk(slot)
            | AttachTakenVif(slot)
            | DetachDisk(slot, _)
            | AttachVif(slot)
            | DetachVif(slot, _) => slot.guest,
        }
    }

    /// Whether it fails on a machine that works.
    pub fn must_fail(&self) -> bool {
        use Operation::*;
        matches!(self, CreateBad(..) | AttachBadDisk(..) | AttachTakenDisk(_) | AttachTakenVif(_))
    }
}

/// The devices of a guest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Guest {
    /// The image of each disk.
    pub disks: [Option<usize>; DISKS],
    /// Whether there is an interface.
    pub vifs: [bool; VIFS],
}

impl Guest {
    /// The numbers of disks and of interfaces.
    pub fn counts(&self) -> [usize; 2] {
        [self.disks.iter().flatten().count(), self.vifs.iter().filter(|exists| **exists).count()]
    }
}

/// What exists on a machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// The guests that exist.
    pub guests: [Option<Guest>; GUESTS],
}

impl State {
    /// The guests that exist, with their indexes.
    pub fn guests(&self) -> impl Iterator<Item = (usize, &Guest)> {
        self.guests.iter().enumerate().filter_map(|(index, guest)| Some((index, guest.as_ref()?)))
    }

    /// The disks that exist, with their images.
    pub fn disks(&self) -> impl Iterator<Item = (Slot, usize)> {
        self.guests().flat_map(|(guest, devices)| {
            let disks = devices.disks.iter().enumerate();
            disks.filter_map(move |(number, image)| Some((Slot { guest, number }, (*image)?)))
        })
    }

    /// The interfaces that exist.
    pub fn vifs(&self) -> impl Iterator<Item = Slot> {
        self.guests().flat_map(|(guest, devices)| {
            let vifs = devices.vifs.iter().enumerate();
            vifs.filter(|(_, exists)| **exists).map(move |(number, _)| Slot { guest, number })
        })
    }

    /// The image of a disk.
    pub fn image(&self, slot: Slot) -> Option<usize> {
        self.guests[slot.guest].as_ref()?.disks[slot.number]
    }

    /// Whether there is such an interface.
    pub fn has_vif(&self, slot: Slot) -> bool {
        self.guests[slot.guest].as_ref().is_some_and(|guest| guest.vifs[slot.number])
    }

    /// The disk that has an image.
    pub fn user(&self, image: usize) -> Option<Slot> {
        self.disks().find(|(_, used)| *used == image).map(|(slot, _)| slot)
    }

    /// The numbers of guests, of disks and of interfaces.
    pub fn counts(&self) -> [usize; 3] {
        [self.guests().count(), self.disks().count(), self.vifs().count()]
    }

    /// Whether each backend serves a device.
    pub fn uses_both_backends(&self) -> bool {
        let [_, disks, vifs] = self.counts();
        disks > 0 && vifs > 0
    }

    /// The operations that make this state from that of an empty machine.
    pub fn creation(&self) -> Step {
        let create = |(index, guest): (usize, &Guest)| Operation::Create(index, guest.clone());
        Step { operations: self.guests().map(create).collect(), interruption: None }
    }

    /// The state after a step.
    ///
    /// # Panics
    /// If the step needs a guest that does not exist.
    pub fn after(&self, step: &Step) -> State {
        let mut after = self.clone();
        step.operations.iter().for_each(|operation| after.apply(operation));
        if let Some(Interruption { victim: Victim::Guest(guest), .. }) = step.interruption {
            after.guests[guest] = None;
        }
        after
    }

    fn apply(&mut self, operation: &Operation) {
        use Operation::*;
        let disk = |guests: &mut [Option<Guest>; GUESTS], slot: Slot, image| {
            guests[slot.guest].as_mut().expect("a guest").disks[slot.number] = image;
        };
        let vif = |guests: &mut [Option<Guest>; GUESTS], slot: Slot, exists| {
            guests[slot.guest].as_mut().expect("a guest").vifs[slot.number] = exists;
        };
        match operation {
            Create(guest, devices) => self.guests[*guest] = Some(devices.clone()),
            Destroy(guest) => self.guests[*guest] = None,
            AttachDisk(slot, image) => disk(&mut self.guests, *slot, Some(*image)),
            DetachDisk(slot, _) => disk(&mut self.guests, *slot, None),
            AttachVif(slot) => vif(&mut self.guests, *slot, true),
            DetachVif(slot, _) => vif(&mut self.guests, *slot, false),
            CreateBad(..) | AttachBadDisk(..) | AttachTakenDisk(_) | AttachTakenVif(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot { guest: 1, number: 2 };

    fn step(operations: Vec<Operation>) -> Step {
        Step { operations, interruption: None }
    }

    #[test]
    fn operations_that_succeed_change_the_state_and_those_that_fail_do_not() {
        let created = State::default().after(&step(vec![Operation::Create(1, Guest::default())]));
        let attached = created.after(&step(vec![
            Operation::AttachDisk(SLOT, 4),
            Operation::AttachVif(Slot { guest: 1, number: 0 }),
        ]));
        assert_eq!(attached.counts(), [1, 1, 1]);
        assert_eq!((attached.image(SLOT), attached.user(4), attached.user(3)), (Some(4), Some(SLOT), None));
        let failing = [
            Operation::AttachBadDisk(Slot { guest: 1, number: 0 }, BadDisk::Short),
            Operation::AttachTakenDisk(SLOT),
            Operation::CreateBad(0, BadDisk::Missing),
        ];
        assert!(failing.iter().all(Operation::must_fail));
        assert_eq!(attached.after(&step(failing.to_vec())), attached);
        let detached = attached.after(&step(vec![Operation::DetachDisk(SLOT, false)]));
        assert_eq!(detached.counts(), [1, 0, 1]);
        assert_eq!(attached.after(&step(vec![Operation::Destroy(1)])), State::default());
    }

    #[test]
    fn guest_that_is_killed_has_no_device_whatever_was_done_to_it() {
        let created = State::default().after(&step(vec![Operation::Create(1, Guest::default())]));
        let kill = |victim| Step {
            operations: vec![Operation::AttachDisk(SLOT, 4)],
            interruption: Some(Interruption { victim, moment: 500 }),
        };
        assert_eq!(created.after(&kill(Victim::Guest(1))), State::default());
        assert_eq!(created.after(&kill(Victim::Dom0)).image(SLOT), Some(4));
    }

    #[test]
    fn disk_that_is_neither_detached_nor_destroyed_is_untouched() {
        let guest = |image| Some(Guest { disks: [Some(image), None, None], vifs: [false; VIFS] });
        let before = State { guests: [0, 2, 4].map(guest) };
        let disk = |guest| Slot { guest, number: 0 };
        let operations = vec![Operation::Destroy(0), Operation::DetachDisk(disk(1), true)];
        let step =
            Step { operations, interruption: Some(Interruption { victim: Victim::Guest(2), moment: 0 }) };
        assert_eq!(step.untouched_disks(&before), [(disk(2), 4)]);
    }

    #[test]
    fn state_is_made_by_its_creation() {
        let mut state = State::default();
        state.guests[0] = Some(Guest { disks: [None, Some(3), Some(1)], vifs: [false, true] });
        state.guests[2] = Some(Guest::default());
        assert_eq!(State::default().after(&state.creation()), state);
    }
}
