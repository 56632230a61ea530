"""Builds the files that the machine boots: hypervisor, kernel, the two initramfs, and a disk image.

An image's name has a hash of the packages and files that it is made from, so that only images of changed files are
built again.
"""

import gzip
import hashlib
import lzma
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import modules, packages
from .cpio import Archive

HERE = Path(__file__).resolve().parent
DOM0 = HERE.parent / "dom0"
GUEST = HERE.parent / "guest"

XEN_TOOLS = "xl xenstored xenconsoled xen-init-dom0 xenconsole libxl-save-helper".split()
E2FS_TOOLS = "e2fsck mke2fs".split()
# Xen's own scripts, which need bash, beside the simple ones of dom0/etc/xen/scripts.
STOCK_SCRIPTS = """
    vif-bridge vif-openvswitch vif-common.sh xen-hotplug-common.sh xen-network-common.sh xen-script-common.sh hotplugpath.sh locking.sh
    logging.sh
""".split()
STORE_TOOLS = "exists list ls read rm watch write chmod".split()


@dataclass
class Images:
    """The paths of the files of a boot."""

    xen: Path
    vmlinux: Path
    dom0: Path
    guest: Path
    disk: Path
    # The archives of `packages.EXTRA`, by name.
    extra: dict[str, Path]


def build(extra: list[str], report=lambda line: None) -> Images:
    """Builds the images that do not exist, and those of `extra`. `report` is called with a line for each step that takes time."""
    with packages.locked("images"):
        return _build(extra, report)


def _build(extra: list[str], report) -> Images:
    root = packages.unpacked("debian", lambda: packages.XEN + packages.BASE + [packages.kernel_package()], report)
    tools = packages.collection("tools", packages.TOOLS, report)
    boot = root / "boot"
    make = _Maker(root, report)
    return Images(
        xen=make("xen", [], lambda to: to.write_bytes(gzip.decompress(_one(boot, "xen-*.gz").read_bytes()))),
        vmlinux=make("vmlinux", [], lambda to: to.write_bytes(_vmlinux(_one(boot, "vmlinuz-*").read_bytes()))),
        dom0=make("dom0.cpio", _scripts(DOM0), lambda to: _dom0(root, tools).write(to)),
        guest=make("guest.cpio", _scripts(GUEST), lambda to: _guest(root).write(to)),
        disk=make("disk.img", [], _disk),
        extra={name: _extra(name, report) for name in extra},
    )


def _extra(name: str, report) -> Path:
    """The archive of the files that `# packages: NAME` adds to dom0."""
    wanted, patterns = packages.EXTRA[name]
    root = packages.collection(name, wanted, report)
    source = packages.sources(name, report) if name in packages.SOURCES else None
    return _Maker(root, report)(f"{name}.cpio", [], lambda to: _files(name, root, patterns, source).write(to))


def _files(name: str, root: Path, patterns: list[str], source: Path | None) -> Archive:
    """The libraries of unpacked packages, and the files of these patterns; and below a directory of that name those of a source."""
    archive = Archive()
    for file in packages.SOURCES[name][1] if source else []:
        archive.copy(f"{name}/{file}", source / file)
    libraries = [f"{directory}/x86_64-linux-gnu/*.so*" for directory in ["lib", "usr/lib"]]
    for pattern in libraries + patterns:
        for file in root.glob(pattern):
            path = str(file.relative_to(root))
            if file.is_symlink():
                archive.link(path, os.readlink(file))
            elif file.is_file():
                archive.copy(path, file)
    return archive


class _Maker:
    """Makes NAME-KEY in the cache unless it exists; of each name the four last used are kept."""

    def __init__(self, root: Path, report):
        self._directory = packages.cache() / "images"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._root, self._report = root, report

    def __call__(self, name: str, sources: list[Path], write) -> Path:
        key = hashlib.sha256((self._root / "PACKAGES").read_bytes())
        makers = [HERE / name for name in ["cpio.py", "images.py", "modules.py", "packages.py"]]
        for source in [*makers, *sources]:
            key.update(source.read_bytes())
        made = self._directory / f"{name}-{key.hexdigest()[:16]}"
        if not made.exists():
            self._report(f"building {name}")
            part = self._directory / f"part-{name}"
            write(part)
            part.rename(made)
        made.touch()
        # Several working copies may share a cache.
        for old in sorted(self._directory.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)[:-4]:
            old.unlink(missing_ok=True)
        return made


def _vmlinux(bzimage: bytes) -> bytes:
    """Extracts the ELF kernel of a bzImage, which saves decompressing at every boot (3 s for dom0, 4.5 s for a guest).

    The x86 boot protocol has setup_sects, payload_offset and payload_length at offsets 0x1f1, 0x248, 0x24c.
    """
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (bzimage[0x1F1] + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if not payload.startswith(b"\xfd7zXZ"):
        raise packages.Missing("the kernel's payload is not xz: Debian 12's linux-image-amd64 is expected")
    return lzma.LZMADecompressor().decompress(payload)


def _common(root: Path) -> Archive:
    archive = Archive()
    archive.copy("bin/busybox", root / "bin/busybox")
    archive.link("bin/sh", "busybox")
    archive.char_device("dev/console", 5, 1)
    for directory in ["proc", "sys", "run", "tmp", "mnt", "root", "etc"]:
        archive.directory(directory)
    return archive


def _dom0(root: Path, tools: Path) -> Archive:
    archive = _common(root)
    for tool in XEN_TOOLS:
        archive.copy(f"usr/lib/xen-4.17/bin/{tool}", root / "usr/lib/xen-4.17/bin" / tool)
    for tool in STORE_TOOLS:
        archive.copy(f"usr/bin/xenstore-{tool}", root / f"usr/bin/xenstore-{tool}")
    for tool in E2FS_TOOLS:
        archive.copy(f"usr/sbin/{tool}", tools / "sbin" / tool)
    archive.copy("usr/sbin/dmsetup", tools / "sbin/dmsetup")
    archive.copy("bin/bash", tools / "bin/bash")
    for script in STOCK_SCRIPTS:
        archive.copy(f"etc/xen/scripts/{script}", root / "etc/xen/scripts" / script)
    for directory in ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]:
        for library in sorted([*(root / directory).glob("*.so*"), *(tools / directory).glob("*.so*")]):
            archive.copy(f"lib/x86_64-linux-gnu/{library.name}", library)
    archive.link("lib64", "lib/x86_64-linux-gnu")
    for script in _scripts(DOM0):
        archive.copy(_target(script, DOM0), script)
    for directory in ["in", "out", "var/lib/xenstored", "var/lib/xen", "var/log/xen", "var/lock"]:
        archive.directory(directory)
    archive.link("var/run", "../run")
    modules.add(archive, root, modules.DOM0 + modules.OPTIONAL)
    return archive


def _guest(root: Path) -> Archive:
    archive = _common(root)
    for script in _scripts(GUEST):
        archive.copy(_target(script, GUEST), script)
    modules.add(archive, root, modules.GUEST)
    return archive


def _disk(to: Path) -> None:
    """Makes a disk of 16 MiB with a partition table and one ext4 partition from 1 MiB on that holds the file `hello`."""
    sectors, start = 32768, 2048
    with to.open("wb") as image:
        image.truncate(sectors * 512)
        entry = struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start, sectors - start)
        image.seek(446)
        image.write(entry + b"\0" * 48 + b"\x55\xaa")
    content = to.with_suffix(".tree")
    content.mkdir(exist_ok=True)
    (content / "hello").write_text("hello from the disk\n")
    mke2fs = [packages.tool("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-d", content]
    subprocess.run([*mke2fs, "-E", f"offset={start * 512}", to, f"{(sectors - start) // 2}k"], check=True)
    (content / "hello").unlink()
    content.rmdir()


def _scripts(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _target(script: Path, directory: Path) -> str:
    return str(script.relative_to(directory))


def _one(directory: Path, pattern: str) -> Path:
    return sorted(directory.glob(pattern))[-1]
