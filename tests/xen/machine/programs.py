"""Builds the static programs that scenarios need, with cargo. Any can be given ready-made instead."""

import json
import os
import subprocess
from pathlib import Path

from .packages import Missing, tool

ROOT = Path(__file__).resolve().parents[3]
TARGET = "x86_64-unknown-linux-gnu"

# One profile for all but `xpv`, so that what they depend on is built once.
TESTED = ["--profile", "scenario"]

# Name where it runs, and what makes cargo build it. `xpv` is what is shipped: its profile too.
KNOWN = {
    "xpv": ["build", "--release", "-p", "toolstack", "--bin", "xpv"],
    "contract": ["test", *TESTED, "--no-run", "-p", "hypervisor", "--test", "contract"],
    "xenstore-conformance": ["test", *TESTED, "--no-run", "-p", "xenstore", "--test", "conformance"],
    "xen-vbd": ["build", *TESTED, "-p", "toolstack", "--example", "xen_vbd"],
    "xen-front": ["build", *TESTED, "-p", "toolstack", "--example", "xen_front"],
    "nbd-attach": ["build", *TESTED, "-p", "toolstack", "--example", "nbd_attach"],
    "grant-costs": ["build", *TESTED, "-p", "hypervisor", "--example", "grant_costs"],
    "xen-times": ["build", *TESTED, "-p", "toolstack", "--example", "xen_times"],
    "hostile-vbd": ["test", *TESTED, "--no-run", "-p", "blkback", "--test", "hostile"],
    "hostile-vif": ["test", *TESTED, "--no-run", "-p", "netback", "--test", "hostile"],
    "layouts": ["test", *TESTED, "--no-run", "-p", "blkback", "--test", "layouts"],
    "on-xen": ["test", *TESTED, "--no-run", "-p", "hypervisor", "--test", "on_xen"],
}


def stripped(program: Path, to: Path) -> bytes:
    """The program without its symbols, by way of the file `to`: a guest's memory holds its initramfs twice."""
    strip = [tool("strip", "binutils"), "-o", to, program]
    # What is no ELF file is a script.
    done = subprocess.run(strip, stderr=subprocess.DEVNULL).returncode == 0
    return (to if done else program).read_bytes()


def build(name: str, say, checkout: Path | None = None) -> Path:
    """The static executable called `name`, of this checkout, or of another one, which has a target directory of its own."""
    if name not in KNOWN:
        raise Missing(f"program {name} is not known: give --program {name}=PATH")
    say(f"building the program {name}" + (f" of {checkout}" if checkout else ""))
    line = [tool("cargo", "cargo, or from rustup.rs"), *KNOWN[name], "--target", TARGET]
    line += ["--target-dir", str(checkout / "target")] if checkout else []
    # A static program runs in any initramfs, whatever C library is there. Elsewhere than on a Xen host `cargo test` shows the
    # tests that need one as ignored: `xen_host` makes them run.
    environment = dict(os.environ, RUSTFLAGS="-C target-feature=+crt-static --cfg xen_host")
    made = subprocess.run(
        [*line, "--message-format=json-render-diagnostics"], cwd=checkout or ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    if made.returncode != 0:
        raise Missing(f"cannot build {name} in {checkout or ROOT}: {' '.join(map(str, line))}")
    reports = [json.loads(each) for each in made.stdout.splitlines() if each.startswith("{")]
    # A package's tests have its programs built too.
    ours = lambda report: report.get("executable") and report["target"]["name"] == KNOWN[name][-1]
    return Path(next(each["executable"] for each in reports if ours(each)))
