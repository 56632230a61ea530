"""One scenario in one QEMU: prepares the shared folders, boots, watches the console, and says how it went."""

import os
import re
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import qemu
from .images import Images
from .scenario import Scenario

RESULT = re.compile(rb"XPV-RESULT (ok|FAIL [^\r\n]*)[\r\n]")
PANIC = re.compile(rb"(Panic on CPU [^\r\n]*|Kernel panic[^\r\n]*|Hardware Dom0 crashed[^\r\n]*)[\r\n]")


@dataclass
class Outcome:
    """How a scenario went: `reason` is None when it passed."""

    seconds: float
    reason: str | None


def run(scenario: Scenario, images: Images, programs: dict[str, Path], folder: Path) -> Outcome:
    """Runs `scenario` with its files in `folder`: `in/`, `out/` and `console.log`."""
    began = time.monotonic()
    shares = _shares(scenario, images, programs, folder)
    line = qemu.command(images, images.dom0, shares, scenario.qemu)
    with (folder / "console.log").open("wb") as log:
        log.write(" ".join(line).encode() + b"\n")
        reason = _watch(line, scenario.timeout, log)
    shutil.rmtree(shares["in"])
    return Outcome(time.monotonic() - began, reason)


def _shares(scenario: Scenario, images: Images, programs: dict[str, Path], folder: Path) -> dict[str, Path]:
    shares = {"in": folder / "in", "out": folder / "out"}
    for share in shares.values():
        share.mkdir(parents=True)
    given = {"scenario": scenario.path, "vmlinux": images.vmlinux, "guest.cpio": images.guest, "disk.img": images.disk}
    for name, source in given.items():
        _place(source, shares["in"] / name)
    (shares["in"] / "programs").mkdir()
    for name, source in programs.items():
        shutil.copy(source, shares["in"] / "programs" / name)
    return shares


def _place(source: Path, to: Path) -> None:
    """A hard link, as 9p shows the guest; a copy across file systems."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy(source, to)


def _watch(line: list[str], bound: float, log) -> str | None:
    """Runs QEMU until the scenario's verdict, a panic, QEMU's end, or `bound` seconds. None is success."""
    deadline = time.monotonic() + bound
    vm = subprocess.Popen(
        line, env=qemu.find().environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    seen = b""
    try:
        while True:
            ready, _, _ = select.select([vm.stdout], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                return f"no verdict after {bound:.0f} s"
            chunk = os.read(vm.stdout.fileno(), 65536)
            if not chunk:
                return f"QEMU ended with status {vm.wait()}"
            log.write(chunk)
            log.flush()
            # A line may come in pieces: keep its beginning.
            seen = seen[seen.rfind(b"\n") + 1 :] + chunk
            if verdict := RESULT.search(seen):
                said = verdict.group(1).decode(errors="replace")
                return None if said == "ok" else said.removeprefix("FAIL ")
            if panic := PANIC.search(seen):
                return panic.group(1).decode(errors="replace")
    finally:
        vm.kill()
        vm.wait()
