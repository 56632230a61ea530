"""The program `xpv` of the previous commit, which this tree's takes over from."""

import os
import shutil
import subprocess
from pathlib import Path

from . import packages
from .programs import PROFILE, ROOT, TARGET, build

# Its name on the machine.
NAME = "xpv-previous"
KEPT = 3


class Unknown(Exception):
    """The previous commit's sources are not here; the text says why."""


def program(report) -> Path:
    """The previous commit's program, built once. The previous commit is HEAD's first parent: on a branch's merge, what
    was there before it.
    """
    commit = _commit()
    with packages.locked("previous"):
        directory = packages.cache() / "previous"
        directory.mkdir(parents=True, exist_ok=True)
        made = directory / f"xpv-{commit}"
        if not made.exists():
            _build(commit, directory, made, report)
        made.touch()
        for old in sorted(directory.glob("xpv-*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
        return made


def _commit() -> str:
    git = shutil.which("git")
    if not git:
        raise Unknown("`git` is not installed")
    line = [git, "rev-parse", "--verify", "--quiet", "HEAD^1^{commit}"]
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        why = done.stderr.strip() or "this clone has only one commit (`git fetch --unshallow` gets the others)"
        raise Unknown(f"no previous commit: {why}")
    return done.stdout.strip()


def _build(commit: str, directory: Path, to: Path, report) -> None:
    """Builds the program from a copy of what this tree's build has made, so that dependencies that neither has changed are not built
    again. A copy: cargo takes equally named crates of two checkouts for the same ones.
    """
    sources, target = directory / "sources", directory / "target"
    for each in (sources, target):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    # `-m`: cargo compares times, and a file of the commit may be older than what was built of this tree.
    subprocess.run(["tar", "-x", "-m", "-C", sources], input=archive, check=True)
    own = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
    for made in (Path(PROFILE), Path(TARGET) / PROFILE):
        if (own / made).exists():
            (target / made).parent.mkdir(exist_ok=True)
            subprocess.run(["cp", "-a", "--reflink=auto", own / made, target / made], check=True)
    part = to.with_suffix(".part")
    shutil.copy(build(NAME, report, sources, PROFILE, target), part)
    part.rename(to)
    shutil.rmtree(target)
