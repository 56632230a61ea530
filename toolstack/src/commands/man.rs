//! `xpv man`: writes manual pages, generated from the description of the command line.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory for xpv.1, xpv-create.1, ...
    directory: PathBuf,
}

/// Writes a page for `program`, the whole command line, and one for each command that is not hidden.
pub fn run(args: &Args, program: clap::Command) -> Result<()> {
    fs::create_dir_all(&args.directory)
        .map_err(|e| Error::file(&args.directory, "making the directory", e))?;
    let mut program = program.disable_help_subcommand(true);
    program.build();
    page(&args.directory, &program, "xpv")?;
    for command in program.get_subcommands().filter(|c| !c.is_hide_set()) {
        page(&args.directory, command, &format!("xpv-{}", command.get_name()))?;
    }
    Ok(())
}

fn page(directory: &Path, command: &clap::Command, title: &str) -> Result<()> {
    let path = directory.join(format!("{title}.1"));
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(command.clone()).title(title.to_uppercase()).render(&mut text);
    rendered.and_then(|()| fs::write(&path, text)).map_err(|e| Error::file(&path, "writing the page", e))
}
