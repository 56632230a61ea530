"""A running QEMU and its console: every line is logged, and waits have a timeout."""

import os
import re
import select
import subprocess
import time

from .qemu import Qemu

PANIC = re.compile(rb"(Panic on CPU [^\r\n]*|Kernel panic[^\r\n]*|Hardware Dom0 crashed[^\r\n]*)[\r\n]")


class MachineError(Exception):
    """The machine failed, or did not do what was waited for; the text says what happened."""


class Console:
    """QEMU, started by `with` and killed at the block's end."""

    def __init__(self, qemu: Qemu, log):
        self._qemu = qemu
        self._log = log
        self._seen = b""
        self._fresh = True

    def __enter__(self):
        self._start = time.monotonic()
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

    def wait(self, wanted: re.Pattern, timeout: float, type_enter: bool = False) -> re.Match:
        """Waits for output that matches `wanted`; raises `MachineError` after the timeout, a panic, or QEMU's exit.

        With `type_enter` an empty line is typed several times a second until then.
        """
        deadline = time.monotonic() + timeout
        while True:
            if found := wanted.search(self._seen):
                self._seen = self._seen[found.end() :]
                return found
            if panic := PANIC.search(self._seen):
                raise MachineError(panic.group(1).decode(errors="replace"))
            left = deadline - time.monotonic()
            if left <= 0:
                raise MachineError(f"no result within {timeout:.0f} s")
            self._read(min(left, 0.2) if type_enter else left, type_enter)

    def _read(self, timeout: float, type_enter: bool) -> None:
        ready, _, _ = select.select([self._vm.stdout], [], [], timeout)
        if not ready:
            if type_enter:
                self._vm.stdin.write(b"\n")
                self._vm.stdin.flush()
            return
        chunk = os.read(self._vm.stdout.fileno(), 65536)
        if not chunk:
            last = self._seen.decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(last) if line.strip()), "no output")
            raise MachineError(f"QEMU exited with status {self._vm.wait()}: {last}")
        self._write(chunk)
        # A line may arrive in parts: keep its start.
        self._seen = self._seen[self._seen.rfind(b"\n") + 1 :] + chunk

    def _write(self, chunk: bytes) -> None:
        """Logs each line with the time of its start, in seconds since QEMU's start."""
        for line in chunk.replace(b"\r", b"").splitlines(keepends=True):
            if self._fresh:
                self._log.write(b"%6.2f  " % (time.monotonic() - self._start))
            self._log.write(line)
            self._fresh = line.endswith(b"\n")
        self._log.flush()
