"""Builds the static programs that scenarios need, with cargo."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .packages import Missing, tool

ROOT = Path(__file__).resolve().parents[3]
TARGET = "x86_64-unknown-linux-gnu"

@dataclass(frozen=True)
class Program:
    """What cargo builds."""

    package: str
    # `bin`, `example` or `test`.
    kind: str
    target: str
    # `xpv` is built as it is shipped. All others are quick to build, and by one call, so that what they depend on is built once.
    profile: str = "scenario"


# By their names on the machine.
KNOWN = {
    "xpv": Program("toolstack", "bin", "xpv", "release"),
    "xpv-previous": Program("toolstack", "bin", "xpv"),
    "contract": Program("hypervisor", "test", "contract"),
    "xenstore-conformance": Program("xenstore", "test", "conformance"),
    "xen-vbd": Program("toolstack", "example", "xen_vbd"),
    "xen-front": Program("toolstack", "example", "xen_front"),
    "nbd-attach": Program("toolstack", "example", "nbd_attach"),
    "udp-burst": Program("toolstack", "example", "udp_burst"),
    "grant-costs": Program("hypervisor", "example", "grant_costs"),
    "xen-times": Program("toolstack", "example", "xen_times"),
    "hostile-vbd": Program("blkback", "test", "hostile"),
    "hostile-vif": Program("netback", "test", "hostile"),
    "log-writes": Program("testkit", "example", "log_writes"),
    "layouts": Program("blkback", "test", "layouts"),
    "on-xen": Program("hypervisor", "test", "on_xen"),
}


def stripped(program: Path, to: Path) -> bytes:
    """The program without its symbols, as a guest's memory holds its initramfs twice. `to` is a temporary file."""
    strip = [tool("strip", "binutils"), "-o", to, program]
    # Not an ELF file: a script.
    done = subprocess.run(strip, stderr=subprocess.DEVNULL).returncode == 0
    return (to if done else program).read_bytes()


def build(name: str, report, checkout: Path | None = None, target: Path | None = None) -> Path:
    """Builds the static executable `name` of this checkout, or of another one in its own target directory or in `target`."""
    report(f"building the program {name}" + (f" of {checkout}" if checkout else ""))
    known = _known(name)
    return _cargo("build", {name: known}, [known.package], checkout, target)[name]


def build_all(names: list[str], report) -> dict[str, Path]:
    """Builds static executables of this checkout."""
    known = {name: _known(name) for name in names}
    built = {name: build(name, report) for name in names if known[name].profile == "release"}
    others = {name: each for name, each in known.items() if name not in built}
    if others:
        report(f"building the programs {', '.join(others)}")
    # By two calls, as `cargo test` would make an example a test; of the same packages, so that both build what these depend on
    # with the same features.
    packages = sorted({each.package for each in others.values()})
    tests = {name: each for name, each in others.items() if each.kind == "test"}
    programs = {name: each for name, each in others.items() if each.kind != "test"}
    for command, some in (("build", programs), ("test", tests)):
        built |= _cargo(command, some, packages) if some else {}
    return built


def _known(name: str) -> Program:
    if name not in KNOWN:
        raise Missing(f"program {name} is not known: give --program {name}=PATH")
    return KNOWN[name]


def _cargo(
    command: str, wanted: dict[str, Program], packages: list[str], checkout: Path | None = None, target: Path | None = None
) -> dict[str, Path]:
    """Builds programs of one profile, which are among those of `packages`, by one call of `cargo build` or `cargo test`."""
    profile = next(iter(wanted.values())).profile
    line = [tool("cargo", "cargo, or from rustup.rs"), command, "--profile", profile, "--target", TARGET]
    line += ["--no-run"] if command == "test" else []
    for package in packages:
        line += ["-p", package]
    for kind, name in sorted({(each.kind, each.target) for each in wanted.values()}):
        line += [f"--{kind}", name]
    line += ["--target-dir", str(target or checkout / "target")] if checkout else []
    # A static program needs no C library in the initramfs. With `xen_host` the tests that need a Xen host are not ignored.
    environment = dict(os.environ, RUSTFLAGS="-C target-feature=+crt-static --cfg xen_host")
    made = subprocess.run(
        [*line, "--message-format=json-render-diagnostics"], cwd=checkout or ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    if made.returncode != 0:
        raise Missing(f"cannot build {', '.join(wanted)} in {checkout or ROOT}: {' '.join(map(str, line))}")
    reports = [json.loads(each) for each in made.stdout.splitlines() if each.startswith("{")]
    # Building a package's tests builds its programs too, and packages have tests of the same name.
    executables = {
        (Path(each["manifest_path"]).parent.name, kind, each["target"]["name"]): Path(each["executable"])
        for each in reports
        if each.get("executable")
        for kind in each["target"]["kind"]
    }
    return {name: executables[each.package, each.kind, each.target] for name, each in wanted.items()}
