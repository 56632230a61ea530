//! Another revision's files, checked out and built below the target directory, where the next run finds them again.

use crate::cargo::{self, Target};
use crate::missing::not_started;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A revision in a directory of its own, `target/against/COMMIT`, with its own target directory in it.
#[derive(Debug)]
pub struct Checkout {
    label: String,
    commit: String,
    directory: PathBuf,
}

impl Checkout {
    /// Checks out a revision of the repository that this program was built from, unless it was before.
    ///
    /// # Errors
    /// There is no such revision, its files cannot be written, or they were changed since.
    pub fn of(revision: &str) -> Result<Self, String> {
        Self::below(
            Path::new(env!("CARGO_MANIFEST_DIR")),
            &cargo::target_directory().join("against"),
            revision,
        )
    }

    /// Checks out a revision of `repository` into a directory of `cache`.
    fn below(repository: &Path, cache: &Path, revision: &str) -> Result<Self, String> {
        let commit = format!("{revision}^{{commit}}");
        let found = git(repository, &[], &["rev-parse", "--verify", "--quiet", "--end-of-options", &commit]);
        let commit = match found {
            Ok(commit) if !commit.is_empty() => commit,
            Ok(_) => return Err(no_such(revision, repository, "")),
            Err(why) => return Err(no_such(revision, repository, &why)),
        };
        let short = commit.get(..10).unwrap_or(&commit);
        let label =
            if commit.starts_with(revision) { revision.to_owned() } else { format!("{revision} ({short})") };
        let directory = cache.join(&commit);
        let checkout = Self { label, commit, directory };
        checkout.fill(repository, cache).map_err(|why| format!("revision {}: {why}", checkout.label))?;
        Ok(checkout)
    }

    /// What messages call it: the revision as it was asked for, and its commit.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whole name of the commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the files if they are not there, and makes sure that they are the commit's.
    fn fill(&self, repository: &Path, cache: &Path) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("{}: {e}", cache.display());
        fs::create_dir_all(cache).map_err(failed)?;
        let lock = File::create(cache.join("lock")).map_err(failed)?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))?;
        let index = cache.join(format!("{}.index", self.commit));
        let git_dir = git(repository, &[], &["rev-parse", "--absolute-git-dir"])?;
        let in_tree = |tree: &Path, arguments: &[&str]| {
            let environment = [
                ("GIT_DIR", git_dir.as_str()),
                ("GIT_WORK_TREE", tree.to_str().ok_or("a path that is no text")?),
                ("GIT_INDEX_FILE", index.to_str().ok_or("a path that is no text")?),
            ];
            git(tree, &environment, arguments)
        };
        if !self.directory.exists() {
            // Under another name until it is whole: what an interrupted run leaves is not taken for a checkout.
            let part = cache.join(format!("{}.part", self.commit));
            if part.exists() {
                fs::remove_dir_all(&part).map_err(failed)?;
            }
            fs::create_dir(&part).map_err(failed)?;
            in_tree(&part, &["read-tree", &self.commit])?;
            in_tree(&part, &["checkout-index", "--all", "--force"])?;
            fs::rename(&part, &self.directory).map_err(failed)?;
        }
        in_tree(&self.directory, &["read-tree", &self.commit])?;
        // A fresh index knows no times of files: refreshing it compares what they hold. It fails if something differs.
        let _ = in_tree(&self.directory, &["update-index", "-q", "--refresh"]);
        let changed = in_tree(&self.directory, &["diff-files", "--name-only"])?;
        let added = in_tree(&self.directory, &["ls-files", "--others", "--exclude-standard"])?;
        match changed.lines().chain(added.lines()).next() {
            None => Ok(()),
            Some(file) => Err(format!(
                "its checkout {} was changed ({file}): remove that directory, and it is checked out anew",
                self.directory.display()
            )),
        }
    }

    /// Builds a program of the revision, and gives its path.
    ///
    /// # Errors
    /// It does not build.
    pub fn build(&self, target: Target) -> Result<PathBuf, String> {
        let directory = self.directory.display();
        eprintln!("building {} of {} in {directory}", target.program, self.label);
        cargo::build(&self.directory, &self.directory.join("target"), target)
            .map_err(|why| format!("revision {} does not build in {directory}: {why}", self.label))
    }
}

fn no_such(revision: &str, repository: &Path, why: &str) -> String {
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    format!("there is no revision {revision} in the git repository of {}{why}", repository.display())
}

/// Runs git in a directory and gives what it prints, without the last newline.
fn git(directory: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| not_started("git", "git", &e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // `rev-parse --quiet` says nothing of a revision that is not there.
        return if said.is_empty() { Ok(String::new()) } else { Err(said) };
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with one commit that holds the file `a`.
    fn repository() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let repository = home.path().join("repository");
        fs::create_dir(&repository).unwrap();
        fs::write(repository.join("a"), "one\n").unwrap();
        fs::write(repository.join(".gitignore"), "/target\n").unwrap();
        let identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"];
        git(&repository, &[], &["init", "-q"]).unwrap();
        git(&repository, &[], &["add", "."]).unwrap();
        git(&repository, &[], &[&identity[..], &["commit", "-q", "-m", "one"]].concat()).unwrap();
        let cache = home.path().join("cache");
        (home, repository, cache)
    }

    #[test]
    fn checkout_holds_the_commit_and_is_reused_with_what_was_built() {
        let (_home, repository, cache) = repository();
        fs::write(repository.join("a"), "uncommitted\n").unwrap();
        let checkout = Checkout::below(&repository, &cache, "HEAD").unwrap();
        assert_eq!(fs::read_to_string(checkout.directory().join("a")).unwrap(), "one\n");
        fs::create_dir(checkout.directory().join("target")).unwrap();
        fs::write(checkout.directory().join("target/built"), "").unwrap();
        let again = Checkout::below(&repository, &cache, checkout.commit()).unwrap();
        assert!(again.directory().join("target/built").exists());
        // The repository's own index knows nothing of it.
        assert_eq!(git(&repository, &[], &["status", "--porcelain"]).unwrap().trim(), "M a");
    }

    #[test]
    fn changed_checkout_is_refused_by_name() {
        let (_home, repository, cache) = repository();
        let checkout = Checkout::below(&repository, &cache, "HEAD").unwrap();
        fs::write(checkout.directory().join("a"), "two\n").unwrap();
        let why = Checkout::below(&repository, &cache, "HEAD").unwrap_err();
        assert!(why.starts_with("revision HEAD (") && why.contains("was changed (a)"), "{why}");
        fs::write(checkout.directory().join("a"), "one\n").unwrap();
        fs::write(checkout.directory().join("b"), "").unwrap();
        assert!(Checkout::below(&repository, &cache, "HEAD").unwrap_err().contains("was changed (b)"));
    }

    #[test]
    fn unknown_revision_is_named() {
        let (home, repository, cache) = repository();
        let why = Checkout::below(&repository, &cache, "no-such-branch").unwrap_err();
        assert!(why.starts_with("there is no revision no-such-branch in the git repository of"), "{why}");
        let why = Checkout::below(home.path(), &cache, "HEAD").unwrap_err();
        assert!(why.contains("not a git repository"), "{why}");
    }
}
