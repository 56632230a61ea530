//! A randomised soak: what is done to a machine, what must hold afterwards, and how a failing run is repeated.
//!
//! [`Plan`] makes [`Step`]s from a seed: operations that are carried out at the same time, and perhaps a domain that is
//! killed meanwhile. [`State`] is what exists after each step. Whatever the interrupted operations did, an [`Executor`]
//! brings the machine to that state, so that the steps depend on the seed alone: [`run`] may begin at any of them. After
//! each it checks that every device of the state is usable, that no other exists, and by [`Baseline`] that nothing grows.
//! [`Content`] is what must be read from an image of [`Images`].
//!
//! One executor is `testkit/tests/soak.rs`, a machine in threads; the other is `toolstack/tests/soak.rs`, of processes.

mod content;
mod figures;
mod image;
pub mod nodes;
mod plan;
mod run;
mod state;

pub use content::{BLOCK, BLOCKS, Content, ContentError, Medium};
pub use figures::{Baseline, Figure, process_figures};
pub use image::{Image, Images};
pub use plan::Plan;
pub use run::{Executor, Settings, run};
pub use state::{
    BadDisk, DISKS, GUESTS, Guest, IMAGES, Interruption, Operation, Slot, State, Step, VIFS, Victim,
};
