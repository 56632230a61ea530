"""Fetches Debian packages into the cache and unpacks them there; nothing is installed on the host.

The versions fetched first are kept until the cache is emptied, so that the test machine does not change meanwhile.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from contextlib import contextmanager
from pathlib import Path

XEN = """
    xen-hypervisor-4.17-amd64 xen-utils-4.17 xen-utils-common xenstore-utils libxencall1 libxenevtchn1
    libxenforeignmemory1 libxengnttab1 libxenmisc4.17 libxenstore4 libxentoollog1 libxendevicemodel1
    libxentoolcore1 libxenhypfs1 libyajl2
""".split()

# Other programs of dom0, in a separate directory, so that adding one does not fetch Xen's packages again.
TOOLS = """
    e2fsprogs libext2fs2 libcom-err2 libblkid1 bash libtinfo6 dmsetup libdevmapper1.02.1 libselinux1 libpcre2-8-0 libudev1
""".split()

# What some scenarios alone have in dom0 (`# packages: NAME`), with the files of it that are put there.
EXTRA = {
    "openvswitch": (
        """
            openvswitch-switch openvswitch-common libunbound8 libevent-2.1-7 libcap-ng0 libssl3 libxdp1 libbpf1 libelf1 libnuma1
            libnettle8 libhogweed6 libgmp10
        """.split(),
        "usr/bin/ovs-vsctl usr/bin/ovs-appctl usr/bin/ovsdb-tool usr/sbin/ovsdb-server usr/lib/openvswitch-switch/* usr/share/openvswitch/*.ovsschema".split(),
    ),
    "networkd": (
        """
            systemd udev libsystemd-shared libmount1 libcap2 libgcrypt20 libgpg-error0 liblz4-1 libcrypt1 libacl1 libaudit1
            libcap-ng0 libkmod2 libseccomp2 libssl3 libpam0g libip4tc2 libblkid1
        """.split(),
        "bin/networkctl bin/udevadm lib/systemd/systemd-networkd lib/systemd/network/99-default.link lib/udev/rules.d/80-net-setup-link.rules usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-*.so".split(),
    ),
    "selftests": (
        """
            iproute2 libbpf1 libbsd0 libcap2 libelf1 libmd0 libmnl0 libxtables12 iputils-ping libidn2-0 libunistring2 jq libjq1 libonig5
            netsniff-ng libcli1.10 libnet1 libpcap0.8 libdbus-1-3 libsystemd0 liblz4-1 libgcrypt20 libgpg-error0 libcrypt1 coreutils
        """.split(),
        "bin/ip sbin/tc sbin/bridge bin/ping usr/bin/jq usr/sbin/mausezahn bin/readlink bin/date".split(),
    ),
}

# What of EXTRA comes with files of a package of sources, which is large: of it these alone are kept, below the directory of that name.
SOURCES = {
    "selftests": (
        "linux-source-6.12",
        [
            f"tools/testing/selftests/net/{name}"
            for name in """
                lib.sh forwarding/lib.sh forwarding/bridge_vlan_unaware.sh forwarding/bridge_vlan_aware.sh
                forwarding/bridge_port_isolation.sh forwarding/bridge_sticky_fdb.sh forwarding/bridge_fdb_learning_limit.sh
                forwarding/bridge_locked_port.sh
            """.split()
        ],
    ),
}

# libgcc-s1: `xl create` aborts without libgcc_s.so.1 (glibc loads it on pthread_cancel).
BASE = "libc6 libgcc-s1 liblzma5 libuuid1 zlib1g libzstd1 busybox-static".split()


class Missing(Exception):
    """A required host tool or package is missing; the text says what to install."""


def cache() -> Path:
    """The directory of all built and fetched files: $XPV_XEN_CACHE, or one below the user's cache."""
    chosen = os.environ.get("XPV_XEN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "xpv-xen"


def tool(name: str, package: str) -> str:
    """The path of a host program; raises `Missing` with the name of its package."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if not found:
        raise Missing(f"`{name}` is not installed: apt-get install {package}")
    return found


def kernel_package() -> str:
    """The package that `linux-image-amd64` depends on, such as linux-image-6.1.0-40-amd64."""
    shown = _apt("apt-cache", "depends", "linux-image-amd64")
    found = re.search(r"Depends: (linux-image-[0-9]\S*)", shown)
    if not found:
        raise Missing("apt does not know linux-image-amd64: run apt-get update (Debian 12 is expected)")
    return found.group(1)


def lacking_for(package: str) -> list[str]:
    """The packages that apt would add to this host to install `package`. A simulation: it changes nothing."""
    output = _apt("apt-get", "-s", "install", "--no-install-recommends", package)
    return re.findall(r"^Inst (\S+)", output, re.MULTILINE)


def offered(package: str) -> list[str]:
    """The versions of `package` that apt can fetch, newest first."""
    shown = _apt("apt-cache", "madison", package)
    return list(dict.fromkeys(line.split("|")[1].strip() for line in shown.splitlines() if "|" in line))


def needed_by(package: str, version: str) -> list[str]:
    """The packages that this version of `package` needs and this host lacks, as NAME=VERSION. Changes nothing.

    Simulated as if no package were installed, as an installed newer version of `package` would hide the dependencies of the
    older one. Of the result, installed packages are left out, except those of its own source, such as qemu-system-data.
    """
    nothing = ["-o", "Dir::State::status=/dev/null"]
    output = _apt("apt-get", "-s", *nothing, "install", "--no-install-recommends", f"{package}={version}")
    needed = re.findall(r"^Inst (\S+) \((\S+)", output, re.MULTILINE)
    status = _apt("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n")
    installed = {line.split()[0] for line in status.splitlines() if line.endswith(" installed")}
    own = package.split("-")[0] + "-"
    return [f"{name}={each}" for name, each in needed if name not in installed or name.startswith(own)]


def collection(name: str, wanted: list[str], report) -> Path:
    """The directory with the packages `wanted`, whose list is in its name."""
    key = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:8]
    return unpacked(f"{name}-{key}", lambda: wanted, report)


def unpacked(name: str, wanted, report) -> Path:
    """The directory `name` of the cache, with packages unpacked into it, which are fetched on first use.

    `wanted` is a function that returns the packages' names; it is called only when they must be fetched.
    """
    root = cache() / name
    stamp = root / "PACKAGES"
    with locked(name):
        if not stamp.exists():
            if os.geteuid() == 0:
                _apt("apt-get", "update")
            _unpack(root, wanted(), stamp, report)
    return root


def sources(name: str, report) -> Path:
    """The directory with the files of `SOURCES[name]`, which are fetched on first use."""
    package, wanted = SOURCES[name]
    key = hashlib.sha256(" ".join([package, *wanted]).encode()).hexdigest()[:8]
    root = cache() / f"{name}-sources-{key}"
    stamp = root / "PACKAGES"
    with locked(root.name):
        if not stamp.exists():
            _unpack(root, [package], stamp, report)
            report(f"unpacking {len(wanted)} files of {package}")
            _keep(_one_below(root / "usr/src", f"{package}.tar.*"), package, wanted, root)
    return root


def _keep(archive: Path, top: str, wanted: list[str], root: Path) -> None:
    """Unpacks files of an archive whose directory is `top`, and removes the archive."""
    with tarfile.open(archive, "r|*") as files:
        left = {f"{top}/{name}": name for name in wanted}
        for member in files:
            name = left.pop(member.name, None)
            if name:
                to = root / name
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(files.extractfile(member).read())
                to.chmod(member.mode)
            if not left:
                break
    shutil.rmtree(root / "usr")
    if left:
        (root / "PACKAGES").unlink()
        raise Missing(f"{archive.name} has no {', '.join(left)}")


def _one_below(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if not found:
        raise Missing(f"{directory} has no {pattern}")
    return found[-1]


@contextmanager
def locked(name: str):
    """Holds the lock `name` of the cache, which several runs may share."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack(root: Path, names: list[str], stamp: Path, report) -> None:
    shutil.rmtree(root, ignore_errors=True)
    debs = root / "debs"
    debs.mkdir(parents=True)
    report(f"fetching {len(names)} packages for {root.name}")
    _apt("apt-get", "download", *names, cwd=debs)
    files = sorted(debs.glob("*.deb"))
    for deb in files:
        subprocess.run([tool("dpkg", "dpkg"), "-x", deb, root], check=True)
    shutil.rmtree(debs)
    stamp.write_text("".join(f"{deb.name}\n" for deb in files))


def _apt(*command: str, cwd=None) -> str:
    program = tool(command[0], "apt")
    environment = dict(os.environ, LC_ALL="C")
    ran = subprocess.run([program, *command[1:]], cwd=cwd, env=environment, text=True, capture_output=True, timeout=600)
    if ran.returncode != 0:
        why = ran.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise Missing(f"{' '.join(command[:3])} failed: {why[0]} (is apt-get update due? Debian 12 is expected)")
    return ran.stdout
