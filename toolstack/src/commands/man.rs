//! `xpv man`: manual pages, made from the command line's own description.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::cli::Cli;
use crate::error::{Error, Result};

/// Write the manual pages into a folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where they go: xpv.1, xpv-create.1, ...
    folder: PathBuf,
}

/// Writes a page for the program and one for each command that is not hidden.
///
/// # Errors
/// The folder cannot be written.
pub fn run(args: &Args) -> Result<()> {
    fs::create_dir_all(&args.folder).map_err(|e| Error::file(&args.folder, "making the folder", e))?;
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    page(&args.folder, &program, "xpv")?;
    for command in program.get_subcommands().filter(|c| !c.is_hide_set()) {
        page(&args.folder, command, &format!("xpv-{}", command.get_name()))?;
    }
    Ok(())
}

fn page(folder: &Path, command: &clap::Command, title: &str) -> Result<()> {
    let path = folder.join(format!("{title}.1"));
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(command.clone()).title(title.to_uppercase()).render(&mut text);
    rendered.and_then(|()| fs::write(&path, text)).map_err(|e| Error::file(&path, "writing the page", e))
}
