"""A booted dom0, saved: scenarios start from it and save the boot.

It is QEMU's migration stream in a file, taken while dom0 waits for a line (dom0/init), before it has mounted 9p.
Equal devices and images restore it, so its name has the hash of both.
"""

import hashlib
import json
import re
import socket
import tempfile
import time
from pathlib import Path

from . import packages, qemu
from .console import Console, Trouble
from .images import Images

READY = re.compile(rb"XPV-READY|XPV-RESULT [^\r\n]*[\r\n]")
BOUND = 120


def build(images: Images, say) -> Path | None:
    """The saved machine, made on first use; `None` where that fails: scenarios then boot from the start."""
    with packages.locked("booted"):
        return _build(images, say)


def _build(images: Images, say) -> Path | None:
    machine = qemu.command(images, {"in": Path("/"), "out": Path("/")}, [])
    key = hashlib.sha256(" ".join(machine.command).encode()).hexdigest()[:16]
    directory = packages.cache() / "images"
    made = directory / f"booted-{key}"
    if made.exists():
        made.touch()
        return made
    say("booting once, to save the booted machine")
    try:
        _save(images, made)
    except (Trouble, OSError) as trouble:
        say(f"no saved machine: {trouble} (log: {directory}/booting.log)")
        return None
    # As with images: those of other working copies stay for a while.
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
            if console.wait(READY, BOUND).group() != b"XPV-READY":
                raise Trouble("dom0 did not come up")
            _migrate(control, made)


def _migrate(control: str, made: Path) -> None:
    part = made.parent / "part-booted"
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.settimeout(BOUND)
        qmp.connect(control)
        lines = qmp.makefile("r")
        lines.readline()
        _order(qmp, lines, "qmp_capabilities")
        _order(qmp, lines, "migrate-set-parameters", **{"max-bandwidth": 1 << 34})
        _order(qmp, lines, "migrate", uri=f"exec:cat > {part}")
        deadline = time.monotonic() + BOUND
        while (state := _order(qmp, lines, "query-migrate").get("status")) != "completed":
            if state == "failed" or time.monotonic() > deadline:
                raise Trouble(f"saving ended as {state}")
            time.sleep(0.05)
    part.rename(made)


def _order(qmp: socket.socket, lines, name: str, **arguments) -> dict:
    """One command of QEMU's control protocol; events that come between are dropped."""
    qmp.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
    while True:
        answer = json.loads(lines.readline())
        if "error" in answer:
            raise Trouble(f"{name}: {answer['error']['desc']}")
        if "return" in answer:
            return answer["return"]
