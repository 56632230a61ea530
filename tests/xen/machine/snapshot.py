"""A saved, booted dom0, from which scenarios start without booting.

It is QEMU's migration stream in a file, taken while dom0 waits for a line (dom0/init), before it mounts 9p. Restoring it
requires the same devices and images, so its name has a hash of both.
"""

import hashlib
import json
import re
import socket
import tempfile
import time
from pathlib import Path

from . import packages, qemu
from .console import Console, MachineError
from .images import Images

READY = re.compile(rb"XPV-READY|XPV-RESULT [^\r\n]*[\r\n]")
TIMEOUT = 120


def build(images: Images, report) -> Path | None:
    """The saved machine, made on first use; `None` if that fails, upon which scenarios boot."""
    with packages.locked("booted"):
        return _build(images, report)


def _build(images: Images, report) -> Path | None:
    machine = qemu.command(images, {"in": Path("/"), "out": Path("/")}, [])
    key = hashlib.sha256(" ".join(machine.command).encode()).hexdigest()[:16]
    directory = packages.cache() / "images"
    made = directory / f"booted-{key}"
    if made.exists():
        made.touch()
        return made
    report("booting once to save the booted machine")
    try:
        _save(images, made)
    except (MachineError, OSError) as error:
        report(f"no saved machine: {error} (log: {directory}/booting.log)")
        return None
    # Several working copies may share a cache.
    for old in sorted(directory.glob("booted-*"), key=lambda path: path.stat().st_mtime)[:-4]:
        old.unlink(missing_ok=True)
    return made


def _save(images: Images, made: Path) -> None:
    with tempfile.TemporaryDirectory() as name, open(made.parent / "booting.log", "wb") as log:
        directory, control = Path(name), f"{name}/qmp"
        shares = {"in": directory / "in", "out": directory / "out"}
        for share in shares.values():
            share.mkdir()
        machine = qemu.command(images, shares, ["-qmp", f"unix:{control},server=on,wait=off"])
        with Console(machine, log) as console:
            if console.wait(READY, TIMEOUT).group() != b"XPV-READY":
                raise MachineError("dom0 did not come up")
            _migrate(control, made)


def _migrate(control: str, made: Path) -> None:
    part = made.parent / "part-booted"
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.settimeout(TIMEOUT)
        qmp.connect(control)
        lines = qmp.makefile("r")
        lines.readline()
        _execute(qmp, lines, "qmp_capabilities")
        _execute(qmp, lines, "migrate-set-parameters", **{"max-bandwidth": 1 << 34})
        _execute(qmp, lines, "migrate", uri=f"exec:cat > {part}")
        deadline = time.monotonic() + TIMEOUT
        while (state := _execute(qmp, lines, "query-migrate").get("status")) != "completed":
            if state == "failed" or time.monotonic() > deadline:
                raise MachineError(f"saving failed: {state}")
            time.sleep(0.05)
    part.rename(made)


def _execute(qmp: socket.socket, lines, name: str, **arguments) -> dict:
    """Executes a command of QEMU's control protocol (QMP); ignores events."""
    qmp.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
    while True:
        reply = json.loads(lines.readline())
        if "error" in reply:
            raise MachineError(f"{name}: {reply['error']['desc']}")
        if "return" in reply:
            return reply["return"]
