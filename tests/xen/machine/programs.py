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


# Quick to build; what is measured is built as it is shipped.
PROFILE = "scenario"
MEASURED = "release"

# By their names on the machine.
KNOWN = {
    "xpv": Program("toolstack", "bin", "xpv"),
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


def build(name: str, report, checkout: Path, profile: str, target: Path | None = None) -> Path:
    """Builds the static executable `name` of another checkout of this repository, in its own target directory or in `target`."""
    report(f"building the program {name} of {checkout}")
    return _cargo("build", {name: _known(name)}, profile, checkout, target)[name]


def build_all(names: list[str], report, measured: bool) -> dict[str, Path]:
    """Builds static executables of this checkout; `xpv` as it is shipped if it is `measured`."""
    groups = {"build": {}, "test": {}, "measured": {}}
    for name in names:
        known = _known(name)
        group = "measured" if measured and name == "xpv" else "test" if known.kind == "test" else "build"
        groups[group][name] = known
    built = {}
    for group, wanted in groups.items():
        if wanted:
            report(f"building the programs {', '.join(wanted)}")
            command, profile = ("build", MEASURED) if group == "measured" else (group, PROFILE)
            built |= _cargo(command, wanted, profile)
    return built


def _known(name: str) -> Program:
    if name not in KNOWN:
        raise Missing(f"program {name} is not known: give --program {name}=PATH")
    return KNOWN[name]


def _cargo(
    command: str, wanted: dict[str, Program], profile: str, checkout: Path | None = None, target: Path | None = None
) -> dict[str, Path]:
    """Builds programs of one profile by one call of `cargo build` or `cargo test`."""
    root = checkout or ROOT
    line = [tool("cargo", "cargo, or from rustup.rs"), command, "--profile", profile, "--target", TARGET]
    line += ["--no-run"] if command == "test" else []
    kinds = {(each.kind, each.target) for each in wanted.values()}
    packages = {each.package for each in wanted.values()}
    if profile == PROFILE:
        # Whatever is wanted, always of the same packages, with what their examples and tests depend on: dependencies have the same
        # features in all calls then, and are built once.
        packages = {each.package for each in KNOWN.values() if (root / each.package).exists()}
        kinds |= {next((each.kind, each.target) for each in KNOWN.values() if _is_example_of(each, root))} if command == "build" else set()
    for package in sorted(packages):
        line += ["-p", package]
    for kind, name in sorted(kinds):
        line += [f"--{kind}", name]
    line += ["--target-dir", str(target or checkout / "target")] if checkout else []
    # A static program needs no C library in the initramfs. With `xen_host` the tests that need a Xen host are not ignored.
    environment = dict(os.environ, RUSTFLAGS="-C target-feature=+crt-static --cfg xen_host")
    made = subprocess.run([*line, "--message-format=json-render-diagnostics"], cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    if made.returncode != 0:
        raise Missing(f"cannot build {', '.join(wanted)} in {root}: {' '.join(map(str, line))}")
    reports = [json.loads(each) for each in made.stdout.splitlines() if each.startswith("{")]
    # Packages have tests of the same name.
    executables = {
        (Path(each["manifest_path"]).parent.name, kind, each["target"]["name"]): Path(each["executable"])
        for each in reports
        if each.get("executable")
        for kind in each["target"]["kind"]
    }
    return {name: executables[each.package, each.kind, each.target] for name, each in wanted.items()}


def _is_example_of(program: Program, checkout: Path) -> bool:
    return (checkout / program.package / "examples" / f"{program.target}.rs").exists()
