"""Finds a QEMU, chooses KVM or TCG, and makes the command line of one boot."""

import os
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import packages
from .images import Images

# Xen prints this line and halts when it has no kernel: the accelerator can run Xen. (Some hosts have a /dev/kvm that
# stops at an instruction of Xen's boot.)
XEN_STARTED = b"dom0 kernel not specified"
KVM_FAILED = b"KVM internal error"

# Without eager-fpu, programs in dom0 sometimes crash or compute wrong results under QEMU 7.2's TCG if there are more virtual
# processors than the host has: of 400 md5sums beside a busy guest with two, one was wrong and one crashed; with it, none of
# 1200.
XEN = "console=com1 com1=115200,8n1 dom0_mem=768M,max:768M dom0_max_vcpus=1 noreboot spec-ctrl=eager-fpu"


# The newest major version whose -icount is known to run a PV dom0: 7.2 does, 10.0 ends with BAD_COUNT within seconds.
# The versions between were not tried.
NEWEST_COUNTING = 7
BAD_COUNT = "Bad icount read"


@dataclass
class Qemu:
    """A QEMU command: the program with its arguments, and the environment with the paths of its files."""

    command: list[str]
    environment: dict[str, str]


def find(report=lambda line: None) -> Qemu:
    """The host's QEMU, or one unpacked into the cache.

    Not installed, as installing qemu-system-x86 removes qemu-utils where that is of another version.
    """
    installed = shutil.which("qemu-system-x86_64")
    if installed:
        return Qemu([installed], dict(os.environ))
    return _unpacked(packages.unpacked("qemu", lambda: packages.lacking_for("qemu-system-x86"), report))


@cache
def find_counting(report=lambda line: None) -> Qemu:
    """A QEMU whose `-icount` works: that of `find`, or an older one from the archive, unpacked into the cache.

    Raises `Missing` if neither can be found.
    """
    usual = find(report)
    version = _version(usual)
    if _major(version) <= NEWEST_COUNTING:
        return usual
    report(f"QEMU {version} is too new to count instructions ({BAD_COUNT!r}): using {NEWEST_COUNTING}.x of the archive")
    return _unpacked(packages.unpacked(f"qemu-{NEWEST_COUNTING}", lambda: _counting_packages(version), report))


def _counting_packages(version: str) -> list[str]:
    offered = packages.offered("qemu-system-x86")
    counting = [each for each in offered if _major(each.partition(":")[2]) <= NEWEST_COUNTING]
    if not counting:
        raise packages.Missing(
            f"QEMU {version} is too new to count instructions: -icount works with a PV dom0 up to {NEWEST_COUNTING}.2 and ends with "
            f"{BAD_COUNT!r} in 10.0; apt offers {', '.join(offered) or 'no qemu-system-x86'}: add Debian 12 (bookworm) to "
            f"apt's sources, or put a qemu-system-x86_64 of version {NEWEST_COUNTING}.2 first in PATH"
        )
    return packages.needed_by("qemu-system-x86", counting[0])


def _unpacked(root: Path) -> Qemu:
    share = root / "usr"
    libraries = share / "lib/x86_64-linux-gnu"
    # Some packages of Debian 12, such as libnl-3-200, still have their libraries in /lib.
    search = f"{libraries}:{root / 'lib/x86_64-linux-gnu'}"
    environment = dict(os.environ, LD_LIBRARY_PATH=search, QEMU_MODULE_DIR=str(libraries / "qemu"))
    firmware = ["-L", str(share / "share/qemu"), "-L", str(share / "share/seabios")]
    return Qemu([str(share / "bin/qemu-system-x86_64"), *firmware], environment)


def _version(qemu: Qemu) -> str:
    """The version, such as 7.2.19. Raises `Missing` if the program does not start."""
    line = [*qemu.command, "--version"]
    ran = subprocess.run(line, env=qemu.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = re.search(r"version (\d[\w.]*)", ran.stdout)
    if not found:
        raise packages.Missing(f"{qemu.command[0]} does not start: {(ran.stderr or ran.stdout).strip()[-200:]}")
    return found.group(1)


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found.group()) if found else NEWEST_COUNTING + 1


@cache
def accelerator(xen: Path) -> str:
    """`kvm` if it runs Xen, else `tcg`; $XPV_XEN_ACCEL overrides. Tried once after each boot of the host."""
    forced = os.environ.get("XPV_XEN_ACCEL")
    if forced:
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = packages.cache() / f"accelerator-{started}"
    with packages.locked("accelerator"):
        if not verdict.exists():
            for old in packages.cache().glob("accelerator-*"):
                old.unlink()
            verdict.write_text("kvm" if _runs_xen("kvm", xen) else "tcg")
    return verdict.read_text()


def _runs_xen(accelerator: str, xen: Path) -> bool:
    """Starts Xen without a kernel and waits for its error message, at most 5 s."""
    qemu = find()
    line = [*qemu.command, *_accelerated(accelerator), *_bare(), "-m", "512", "-kernel", str(xen)]
    line += ["-append", "console=com1 com1=115200,8n1"]
    with subprocess.Popen(
        line, env=qemu.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as probe:
        watchdog = threading.Timer(5, probe.kill)
        watchdog.start()
        # Either line is printed within milliseconds; QEMU does not exit after it.
        verdict = next((text for text in probe.stdout if XEN_STARTED in text or KVM_FAILED in text), b"")
        watchdog.cancel()
        probe.kill()
    return XEN_STARTED in verdict


def counts(extra: list[str]) -> bool:
    """Whether a machine with these arguments counts instructions."""
    return "-icount" in extra


def command(images: Images, shares: dict[str, Path], extra: list[str]) -> Qemu:
    """The command of one machine. `shares` are 9p tags and directories; `extra` are further arguments of QEMU.

    Commas separate modules in -initrd, so that dom0's kernel command line may have none.
    """
    qemu = find_counting() if counts(extra) else find()
    accelerated = _accelerated("tcg,thread=single" if counts(extra) else accelerator(images.xen))
    line = [*qemu.command, *accelerated, *_bare(), "-smp", "2", "-m", "2G"]
    line += ["-kernel", str(images.xen), "-append", XEN]
    line += ["-initrd", f"{images.vmlinux} console=hvc0 quiet loglevel=4,{images.dom0}"]
    for tag, directory in shares.items():
        line += ["-fsdev", f"local,id={tag},path={directory},security_model=none"]
        line += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return Qemu(line + extra, qemu.environment)


def _accelerated(by: str) -> list[str]:
    if by.startswith("kvm"):
        return ["-accel", by, "-cpu", "host"]
    by = by if "," in by else f"{by},thread=multi"
    # QEMU 7.2 emulates SMAP in a way that crashes a PV dom0.
    return ["-accel", by, "-cpu", "max,-smap"]


def _bare() -> list[str]:
    return "-nographic -vga none -no-reboot -net none -nodefaults -serial stdio".split()
