"""Adds kernel modules with their dependencies to an archive, and the index that modprobe reads."""

import re
from pathlib import Path

from .cpio import Archive

# Neither list has xen-blkback and xen-netback, as a kernel with these loaded claims every device, nor null_blk, which takes options. They are in the image as
# OPTIONAL; a scenario that needs the kernel's own backends loads them with modprobe. So is what one scenario alone needs.
DOM0 = """
    xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-blkfront xen-netfront
    virtio_pci 9pnet_virtio 9p loop dm-mod brd bridge tun veth ext4 crc32c_generic
""".split()
OPTIONAL = """
    xen-blkback xen-netback null_blk dm-log-writes openvswitch
    vrf 8021q sch_ingress cls_flower act_gact
""".split()
GUEST = """
    xen-evtchn xen-gntdev xen-gntalloc xenfs tun nbd xen-blkfront xen-netfront ext4 crc32c_generic pktgen
""".split()


def add(archive: Archive, kernel_root: Path, wanted: list[str]) -> None:
    """Adds `wanted` and their dependencies to `archive`, with modules.dep."""
    directory = next((kernel_root / "lib/modules").iterdir())
    files = {_name(path): path for path in directory.rglob("*.ko")}
    needs: dict[str, list[str]] = {}
    for name in wanted:
        _visit(_name(Path(name)), files, needs)
    lines = []
    for name, direct in needs.items():
        path = files[name].relative_to(directory)
        archive.copy(f"lib/modules/{directory.name}/{path}", files[name])
        lines.append(f"{path}: {' '.join(str(files[need].relative_to(directory)) for need in _closure(direct, needs))}\n")
    archive.file(f"lib/modules/{directory.name}/modules.dep", "".join(lines).encode())


def _visit(name: str, files: dict[str, Path], needs: dict[str, list[str]]) -> None:
    if name in needs:
        return
    # Module information is a list of NUL-ended key=value strings in the .modinfo section.
    found = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
    direct = [_name(Path(need)) for need in found.group(1).decode().split(",") if need] if found else []
    needs[name] = direct
    for need in direct:
        _visit(need, files, needs)


def _closure(direct: list[str], needs: dict[str, list[str]]) -> list[str]:
    """Direct and indirect dependencies in the order of modules.dep: those to be loaded last come first."""
    seen: list[str] = []
    for need in direct:
        for each in [need, *_closure(needs[need], needs)]:
            if each in seen:
                seen.remove(each)
            seen.append(each)
    return seen


def _name(path: Path) -> str:
    return path.name.removesuffix(".ko").replace("-", "_")
