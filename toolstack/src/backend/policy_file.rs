//! Reads the policy's file again on SIGHUP. All of what it says is put in force, or nothing: with a file that is bad or gone the policy
//! stays as it is. The process that opens images opens it, as this one may open no file but its machine's.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::policy_in_force::PolicyInForce;
use crate::config::policy::Policy;
use crate::error::{Error, Origin, Result, chain};
use crate::machine::process;
use crate::opener::Opener;

/// Bytes of a policy at most: many thousand rules. A file that grows without end is not read without end.
const MAX_BYTES: u64 = 16 << 20;

/// A policy's file, and what is in force of it.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    in_force: PolicyInForce,
}

impl PolicyFile {
    /// Reads the file.
    ///
    /// # Errors
    /// Those of [`Policy::read`].
    pub fn read(path: &Path) -> Result<PolicyFile> {
        Ok(PolicyFile { path: path.to_owned(), in_force: PolicyInForce::new(Policy::read(path)?) })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The policy, for those that follow it.
    pub fn in_force(&self) -> &PolicyInForce {
        &self.in_force
    }

    fn read_again(&self, opener: &Opener, stop: BorrowedFd<'_>) -> Result<()> {
        let Some(file) = opener.policy(stop).map_err(Error::Other)? else { return Ok(()) };
        let policy = Policy::parse(&Origin::file(&self.path), &self.text(file)?)?;
        tracing::info!(policy = %self.path.display(), rules = policy.len(), "read the policy again");
        self.in_force.replace(policy);
        Ok(())
    }

    fn text(&self, file: File) -> Result<String> {
        let mut text = String::new();
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        let len = read.map_err(|e| Error::file(&self.path, "reading the policy", e))?;
        match len as u64 > MAX_BYTES {
            true => Err(Error::Other(format!(
                "{}: found more than {MAX_BYTES} bytes, expected a policy",
                self.path.display()
            ))),
            false => Ok(text),
        }
    }
}

/// Reads the file again on each signal of `hangup`, until `stop` is readable.
///
/// # Errors
/// Waiting fails.
pub fn follow(
    file: Option<&PolicyFile>,
    opener: &Opener,
    hangup: &UnixStream,
    stop: BorrowedFd<'_>,
) -> Result<()> {
    loop {
        process::wait_any(&[hangup.as_fd(), stop])?;
        if process::is_readable(&[stop])? {
            return Ok(());
        }
        if !process::take_signal(hangup) {
            continue;
        }
        let Some(file) = file else {
            tracing::info!("SIGHUP: there is no policy to read again (--policy)");
            continue;
        };
        if let Err(error) = file.read_again(opener, stop) {
            tracing::error!(error = %chain(&error), "failed to read the policy again; what was in force before stays so");
        }
    }
}
