"""A scenario: a shell script for dom0, whose requirements are in comments at its top."""

import re
from dataclasses import dataclass
from pathlib import Path

# How much longer than the seconds of its comment a scenario may take before it counts as stuck: a machine may be busy, or slow.
PATIENCE = 2.5

DIRECTORY = Path(__file__).resolve().parent.parent / "scenarios"


@dataclass
class Scenario:
    """One file of `scenarios/`.

    The first comment line says what it tests. Further comment lines may be `# timeout: SECONDS`,
    `# needs: PROGRAM...` (for dom0), `# packages: NAME...` (for dom0, of `packages.EXTRA`), `# guest-programs: PROGRAM...` (for every guest), `# qemu: ARGUMENTS` and
    `# only: when named`, for measurements, which `--all` leaves out.
    """

    name: str
    path: Path
    shows: str
    timeout: float
    needs: list[str]
    packages: list[str]
    guest_programs: list[str]
    qemu: list[str]
    only_named: bool


def every() -> list[Scenario]:
    """All scenarios, by name."""
    return [_read(path) for path in sorted(DIRECTORY.glob("*.sh"))]


def _read(path: Path) -> Scenario:
    text = path.read_text()
    settings = dict(re.findall(r"^# (timeout|needs|packages|guest-programs|qemu|only): (.*)$", text, re.MULTILINE))
    return Scenario(
        name=path.stem,
        path=path,
        shows=text.splitlines()[0].removeprefix("# "),
        timeout=PATIENCE * float(settings.get("timeout", 120)),
        needs=settings.get("needs", "").split(),
        packages=settings.get("packages", "").split(),
        guest_programs=settings.get("guest-programs", "").split(),
        qemu=settings.get("qemu", "").split(),
        only_named=settings.get("only") == "when named",
    )
