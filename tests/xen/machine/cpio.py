"""Writes a newc cpio archive, the format of an initramfs. Archives may be concatenated.

Not with cpio(1): that needs root for device nodes, and its output depends on more than the input.
"""

import stat
from pathlib import Path


class Archive:
    """The files of an archive. Missing parent directories are added."""

    def __init__(self):
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | mode, content)

    def copy(self, path: str, source: Path) -> None:
        """Adds the host's file `source` with its mode; follows links."""
        self.file(path, source.read_bytes(), source.stat().st_mode & 0o777)

    def link(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, path: str) -> None:
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def char_device(self, path: str, major: int, minor: int) -> None:
        self._add(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def write(self, to: Path) -> None:
        """Writes the archive; no partial file has its final name."""
        part = to.with_suffix(".part")
        with part.open("wb") as out:
            for number, (path, (mode, content, device)) in enumerate(sorted(self._entries.items()), 1):
                out.write(_record(path, number, mode, content, device))
            out.write(_record("TRAILER!!!", 0, 0, b"", (0, 0)))
            # The kernel requires 4-byte alignment of concatenated archives; cpio(1) pads to 512.
            out.write(b"\0" * (-out.tell() % 512))
        part.rename(to)

    def _add(self, path: str, mode: int, content: bytes, device=(0, 0)) -> None:
        path = path.strip("/")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.directory(parent)
        self._entries[path] = (mode, content, device)


def _record(path: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    """One entry: 110 bytes of header in hex, name, content, each padded to 4 (Linux, Documentation/
    driver-api/early-userspace/buffer-format.rst)."""
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = [inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0]
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)
