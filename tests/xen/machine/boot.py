"""One scenario in one QEMU: prepares the shared directories, starts the machine, and says how it went."""

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from . import qemu
from .console import Console, Trouble
from .cpio import Archive
from .images import Images
from .programs import stripped
from .scenario import Scenario

RESULT = re.compile(rb"XPV-RESULT (ok|FAIL [^\r\n]*)[\r\n]")
# Dom0 heard the empty line it was waiting for, or failed before.
BEGUN = re.compile(rb"XPV-GO|(?=XPV-RESULT)")


@dataclass
class Outcome:
    """How a scenario went: `reason` is None when it passed."""

    seconds: float
    reason: str | None


def run(scenario: Scenario, images: Images, saved: Path | None, programs: dict[str, Path], directory: Path) -> Outcome:
    """Runs `scenario` with its files in `directory`: `in/`, `out/` and `console.log`; from `saved` if it can."""
    began = time.monotonic()
    shares = _shares(scenario, images, programs, directory)
    machine = qemu.command(images, shares, scenario.qemu)
    # A saved machine has the devices it was saved with and no others.
    if saved and not scenario.qemu:
        machine.command += ["-incoming", f"exec:cat {saved}"]
    with (directory / "console.log").open("wb") as log:
        log.write(" ".join(machine.command).encode() + b"\n")
        reason = _watch(machine, scenario.timeout, log)
    shutil.rmtree(shares["in"])
    return Outcome(time.monotonic() - began, reason)


def _watch(machine: qemu.Qemu, bound: float, log) -> str | None:
    """Why the scenario failed, or None."""
    try:
        with Console(machine, log) as console:
            console.wait(BEGUN, bound, nudge=True)
            said = console.wait(RESULT, bound).group(1).decode(errors="replace")
    except Trouble as trouble:
        return str(trouble)
    return None if said == "ok" else said.removeprefix("FAIL ")


def _shares(scenario: Scenario, images: Images, programs: dict[str, Path], directory: Path) -> dict[str, Path]:
    shares = {"in": directory / "in", "out": directory / "out"}
    for share in shares.values():
        share.mkdir(parents=True)
    given = {"scenario": scenario.path, "vmlinux": images.vmlinux, "disk.img": images.disk}
    for name, source in given.items():
        _place(source, shares["in"] / name)
    _guest(images.guest, {name: programs[name] for name in scenario.guest_programs}, shares["in"] / "guest.cpio")
    (shares["in"] / "programs").mkdir()
    for name, source in programs.items():
        if name not in scenario.guest_programs or name in scenario.needs:
            shutil.copy(source, shares["in"] / "programs" / name)
    return shares


def _guest(base: Path, programs: dict[str, Path], to: Path) -> None:
    """The guests' initramfs: the one all scenarios share, and a second archive behind it with this one's programs."""
    if not programs:
        return _place(base, to)
    own = Archive()
    for name, source in programs.items():
        own.file(f"bin/{name}", stripped(source, to), 0o755)
    own.write(to)
    to.write_bytes(base.read_bytes() + to.read_bytes())


def _place(source: Path, to: Path) -> None:
    """A hard link, as 9p shows the guest; a copy across file systems."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy(source, to)
