//! Changes of an image that is served, with the files that they need.

#![allow(dead_code)] // Each test uses a part of it.

use blkback::engine::format::{ImageControl, OpenChain, OpenLayer, Progress};
use blkback::engine::{Access, Mode, OpenError};
use std::io;
use std::path::Path;
use std::sync::Arc;

fn access(mode: Mode) -> Access {
    Access { mode, direct: true, user: None, own_loop: None, server: None }
}

/// Opens an image for writing that is over one that is served.
pub(crate) fn open_alone(path: &Path) -> OpenChain {
    OpenChain::open_alone(path, access(Mode::Write), &|_, _| Ok(())).unwrap()
}

/// Opens the image below the guest's own again, in another mode, and has it used.
pub(crate) fn reopen_below(control: &ImageControl, mode: Mode) -> Result<(), OpenError> {
    let (path, _, _) = control.open_file(1).unwrap();
    reopen_below_at(control, &path, mode)
}

/// As [`reopen_below`], at another path.
pub(crate) fn reopen_below_at(control: &ImageControl, path: &Path, mode: Mode) -> Result<(), OpenError> {
    let (_, format, held) = control.open_file(1).unwrap();
    let layer = OpenLayer::reopen(path, format, access(mode), held, &|_, _| Ok(()))?;
    control.replace(1, layer).unwrap();
    Ok(())
}

pub(crate) fn commit(control: &ImageControl, progress: &Arc<Progress>) -> io::Result<()> {
    reopen_below(control, Mode::Write).unwrap();
    let outcome = control.commit(progress.clone());
    reopen_below(control, Mode::Read).unwrap();
    outcome
}
