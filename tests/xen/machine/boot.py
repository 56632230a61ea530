"""Runs one scenario in one QEMU: prepares the shared directories, starts the machine, and returns the outcome."""

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from . import qemu
from .console import Console, MachineError
from .cpio import Archive
from .images import Images
from .programs import stripped
from .scenario import Scenario

RESULT = re.compile(rb"XPV-RESULT (ok|FAIL [^\r\n]*)[\r\n]")
# Dom0 has read the line that it waits for, or failed before.
BEGUN = re.compile(rb"XPV-GO|(?=XPV-RESULT)")


@dataclass
class Outcome:
    """The outcome of a scenario: `reason` is why it failed, None when it passed."""

    seconds: float
    reason: str | None


def run(scenario: Scenario, images: Images, saved: Path | None, programs: dict[str, Path], directory: Path) -> Outcome:
    """Runs `scenario` with its files in `directory`: `in/`, `out/` and `console.log`; from the saved machine where possible."""
    start = time.monotonic()
    shares = _shares(scenario, images, programs, directory)
    machine = qemu.command(images, shares, scenario.qemu)
    # A saved machine has exactly the devices that it was saved with.
    if saved and not scenario.qemu:
        machine.command += ["-incoming", f"exec:cat {saved}"]
    with (directory / "console.log").open("wb") as log:
        log.write(" ".join(machine.command).encode() + b"\n")
        reason = _watch(machine, scenario.timeout, log)
    shutil.rmtree(shares["in"])
    return Outcome(time.monotonic() - start, reason)


def _watch(machine: qemu.Qemu, timeout: float, log) -> str | None:
    """Why the scenario failed, or None."""
    try:
        with Console(machine, log) as console:
            console.wait(BEGUN, timeout, type_enter=True)
            result = console.wait(RESULT, timeout).group(1).decode(errors="replace")
    except MachineError as error:
        return str(error)
    return None if result == "ok" else result.removeprefix("FAIL ")


def _shares(scenario: Scenario, images: Images, programs: dict[str, Path], directory: Path) -> dict[str, Path]:
    shares = {"in": directory / "in", "out": directory / "out"}
    for share in shares.values():
        share.mkdir(parents=True)
    inputs = {"scenario": scenario.path, "vmlinux": images.vmlinux, "disk.img": images.disk}
    for name, source in inputs.items():
        _link(source, shares["in"] / name)
    _guest(images.guest, {name: programs[name] for name in scenario.guest_programs}, shares["in"] / "guest.cpio")
    (shares["in"] / "programs").mkdir()
    (shares["in"] / "packages").mkdir()
    for name in scenario.packages:
        _link(images.extra[name], shares["in"] / "packages" / f"{name}.cpio")
    # Not the other scenarios' programs: all of them would fill dom0's memory.
    for name in scenario.needs:
        shutil.copy(programs[name], shares["in"] / "programs" / name)
    return shares


def _guest(base: Path, programs: dict[str, Path], to: Path) -> None:
    """Makes the guests' initramfs: the one of all scenarios, followed by an archive with this scenario's programs."""
    if not programs:
        return _link(base, to)
    own = Archive()
    for name, source in programs.items():
        own.file(f"bin/{name}", stripped(source, to), 0o755)
    own.write(to)
    to.write_bytes(base.read_bytes() + to.read_bytes())


def _link(source: Path, to: Path) -> None:
    """Makes a hard link, as 9p does not follow symbolic links on the host; a copy across file systems."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy(source, to)
