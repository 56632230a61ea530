"""Builds the static programs that scenarios need, with cargo."""

import json
import os
import subprocess
from pathlib import Path

from .packages import Missing, tool

ROOT = Path(__file__).resolve().parents[3]
TARGET = "x86_64-unknown-linux-gnu"

# One profile for all but `xpv`, so that their dependencies are built once.
TESTED = ["--profile", "scenario"]

# The program's name on the machine, and cargo's arguments. `xpv` is built as it is shipped.
KNOWN = {
    "xpv": ["build", "--release", "-p", "toolstack", "--bin", "xpv"],
    "xpv-previous": ["build", *TESTED, "-p", "toolstack", "--bin", "xpv"],
    "contract": ["test", *TESTED, "--no-run", "-p", "hypervisor", "--test", "contract"],
    "xenstore-conformance": ["test", *TESTED, "--no-run", "-p", "xenstore", "--test", "conformance"],
    "xen-vbd": ["build", *TESTED, "-p", "toolstack", "--example", "xen_vbd"],
    "xen-front": ["build", *TESTED, "-p", "toolstack", "--example", "xen_front"],
    "nbd-attach": ["build", *TESTED, "-p", "toolstack", "--example", "nbd_attach"],
    "udp-burst": ["build", *TESTED, "-p", "toolstack", "--example", "udp_burst"],
    "grant-costs": ["build", *TESTED, "-p", "hypervisor", "--example", "grant_costs"],
    "xen-times": ["build", *TESTED, "-p", "toolstack", "--example", "xen_times"],
    "hostile-vbd": ["test", *TESTED, "--no-run", "-p", "blkback", "--test", "hostile"],
    "hostile-vif": ["test", *TESTED, "--no-run", "-p", "netback", "--test", "hostile"],
    "layouts": ["test", *TESTED, "--no-run", "-p", "blkback", "--test", "layouts"],
    "on-xen": ["test", *TESTED, "--no-run", "-p", "hypervisor", "--test", "on_xen"],
}


def stripped(program: Path, to: Path) -> bytes:
    """The program without its symbols, as a guest's memory holds its initramfs twice. `to` is a temporary file."""
    strip = [tool("strip", "binutils"), "-o", to, program]
    # Not an ELF file: a script.
    done = subprocess.run(strip, stderr=subprocess.DEVNULL).returncode == 0
    return (to if done else program).read_bytes()


def build(name: str, report, checkout: Path | None = None, target: Path | None = None) -> Path:
    """Builds the static executable `name` of this checkout, or of another one in its own target directory or in `target`."""
    if name not in KNOWN:
        raise Missing(f"program {name} is not known: give --program {name}=PATH")
    report(f"building the program {name}" + (f" of {checkout}" if checkout else ""))
    line = [tool("cargo", "cargo, or from rustup.rs"), *KNOWN[name], "--target", TARGET]
    line += ["--target-dir", str(target or checkout / "target")] if checkout else []
    # A static program needs no C library in the initramfs. With `xen_host` the tests that need a Xen host are not ignored.
    environment = dict(os.environ, RUSTFLAGS="-C target-feature=+crt-static --cfg xen_host")
    made = subprocess.run(
        [*line, "--message-format=json-render-diagnostics"], cwd=checkout or ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    if made.returncode != 0:
        raise Missing(f"cannot build {name} in {checkout or ROOT}: {' '.join(map(str, line))}")
    reports = [json.loads(each) for each in made.stdout.splitlines() if each.startswith("{")]
    # Building a package's tests builds its programs too.
    is_wanted = lambda report: report.get("executable") and report["target"]["name"] == KNOWN[name][-1]
    return Path(next(each["executable"] for each in reports if is_wanted(each)))
