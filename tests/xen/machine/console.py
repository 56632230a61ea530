"""A running QEMU and its console: every line is logged, and waited for with a bound."""

import os
import re
import select
import subprocess
import time

from .qemu import Qemu

PANIC = re.compile(rb"(Panic on CPU [^\r\n]*|Kernel panic[^\r\n]*|Hardware Dom0 crashed[^\r\n]*)[\r\n]")


class Trouble(Exception):
    """The machine did not do what was waited for; the text says what it did."""


class Console:
    """QEMU, from `with` to the block's end, at which it is killed."""

    def __init__(self, qemu: Qemu, log):
        self._qemu = qemu
        self._log = log
        self._seen = b""
        self._fresh = True

    def __enter__(self):
        self._began = time.monotonic()
        self._vm = subprocess.Popen(
            self._qemu.command,
            env=self._qemu.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return self

    def __exit__(self, *_):
        self._vm.kill()
        self._vm.wait()

    def wait(self, wanted: re.Pattern, bound: float, nudge: bool = False) -> re.Match:
        """What matched `wanted`; `Trouble` after `bound` seconds, a panic, or QEMU's end.

        With `nudge` an empty line is typed several times a second, until it is heard.
        """
        deadline = time.monotonic() + bound
        while True:
            if found := wanted.search(self._seen):
                self._seen = self._seen[found.end() :]
                return found
            if panic := PANIC.search(self._seen):
                raise Trouble(panic.group(1).decode(errors="replace"))
            left = deadline - time.monotonic()
            if left <= 0:
                raise Trouble(f"no result within {bound:.0f} s")
            self._read(min(left, 0.2) if nudge else left, nudge)

    def _read(self, bound: float, nudge: bool) -> None:
        ready, _, _ = select.select([self._vm.stdout], [], [], bound)
        if not ready:
            if nudge:
                self._vm.stdin.write(b"\n")
                self._vm.stdin.flush()
            return
        chunk = os.read(self._vm.stdout.fileno(), 65536)
        if not chunk:
            last = self._seen.decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(last) if line.strip()), "no output")
            raise Trouble(f"QEMU ended with status {self._vm.wait()}: {last}")
        self._write(chunk)
        # A line may come in pieces: keep its beginning.
        self._seen = self._seen[self._seen.rfind(b"\n") + 1 :] + chunk

    def _write(self, chunk: bytes) -> None:
        """Logs lines with the time at which they began, in seconds since QEMU's start."""
        for line in chunk.replace(b"\r", b"").splitlines(keepends=True):
            if self._fresh:
                self._log.write(b"%6.2f  " % (time.monotonic() - self._began))
            self._log.write(line)
            self._fresh = line.endswith(b"\n")
        self._log.flush()
