"""What `make audit` and `make licences` ask of the locks beyond what pip-audit and
pip-licenses do: both see only what would be installed on this machine, and a lock is
for all of them."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = ("slim", "full", "ray", "dev")
LONGEST = timedelta(days=180)  # for ever is no waiver
TABLE = HERE.parent / "docs" / "licences.md"
UNKNOWN = "UNKNOWN"


class Refused(Exception):
    """The check fails, and this is why."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: Path) -> list[tuple[str, str]]:
    """Name and version of every line, whatever machine it is for."""
    text = lock.read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)
    if not found:
        raise Refused(f"{lock.name} pins nothing")
    return [(canonical(name), version) for name, version in found]


def rounds(pinned: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The pins, each once, with one version of a name in a round: pip-audit refuses
    two, and a lock has two where Pythons need different ones."""
    made: list[dict[str, str]] = []
    for name, version in sorted(set(pinned)):
        for one in made:
            if name not in one:
                one[name] = version
                break
        else:
            made.append({name: version})
    return made


def waived(file: Path, today: date) -> list[str]:
    """The ids that `pip-audit` may pass over; an expired waiver fails."""
    ids = []
    for waiver in tomllib.loads(file.read_text(encoding="utf-8")).get("waiver", []):
        if set(waiver) != {"id", "reason", "expires"} or not waiver["reason"].strip():
            raise Refused(f"{file.name}: a waiver has id, reason and expires: {waiver}")
        expires = waiver["expires"]
        if type(expires) is not date:
            raise Refused(f"{file.name}: {waiver['id']}: expires is no date")
        if expires < today:
            raise Refused(f"{file.name}: {waiver['id']} expired on {expires}")
        if expires > today + LONGEST:
            raise Refused(
                f"{file.name}: {waiver['id']}: {expires} is over {LONGEST.days} days away"
            )
        ids.append(waiver["id"])
    return ids


def audit(tool: list[str], options: list[str], folder: Path, today: date) -> None:
    """Ask the database about every pin of the locks."""
    ignored = [
        part
        for one in waived(folder / "waivers.toml", today)
        for part in ("--ignore-vuln", one)
    ]
    pinned = [pin for lock in LOCKS for pin in pins(folder / f"{lock}.lock")]
    # Strict: without it, what the database could not be asked about passes.
    command = [*tool, "--strict", "--disable-pip", "--no-deps", *options, *ignored]
    for number, one in enumerate(rounds(pinned)):
        with tempfile.TemporaryDirectory() as made:
            file = Path(made) / f"round-{number}.txt"
            file.write_text("".join(f"{n}=={v}\n" for n, v in one.items()))
            if subprocess.run([*command, "--requirement", str(file)]).returncode:
                raise Refused(
                    "audit failed: vulnerabilities are listed above, or else the "
                    "database could not be asked, which is no pass either"
                )
        print(f"{len(one)} pins: no vulnerability that is not waived", flush=True)


def licences(found: list[dict[str, str]], folder: Path) -> list[tuple[str, str, str]]:
    """Name, version and licence of every pin of the full lock."""
    rules = tomllib.loads((folder / "licences.toml").read_text(encoding="utf-8"))
    stated, allowed = rules["stated"], set(rules["allowed"])
    installed = {canonical(one["Name"]): one for one in found}
    rows, wrong = [], []
    pinned = pins(folder / "full.lock")
    versions: dict[str, set[str]] = {}
    for name, version in pinned:
        versions.setdefault(name, set()).add(version)
    for name, version in pinned:
        told = installed.get(name, {"Version": "", "License": UNKNOWN})
        if told["Version"] and told["Version"] not in versions[name]:
            wrong.append(f"{name}: {told['Version']} is installed, not the lock's")
        licence = told["License"]
        if licence == UNKNOWN:
            licence = stated.get(name, UNKNOWN)
        elif name in stated:
            wrong.append(f"{name}: says {licence} itself: take it out of [stated]")
        if licence not in allowed:
            wrong.append(f"{name} {version}: {licence!r} is not allowed")
        rows.append((name, version, licence))
    wrong += [
        f"{name}: stated, not in the lock" for name in set(stated) - set(versions)
    ]
    if wrong:
        raise Refused("\n".join(sorted(wrong)))
    return rows


def table(rows: list[tuple[str, str, str]]) -> str:
    """The list of licences, in Markdown."""
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return (
        "# Licences\n\nOf all that `requirements/full.lock` can install (of which the "
        "slim image has a part), as the packages say it\nthemselves or, where they do "
        "not, as their licence files do (`requirements/licences.toml`). Made by `make "
        "licences`.\n\nThe playground brings uPlot 1.6.32 along, under the MIT licence "
        "(`service/playground/vendor/uPlot.LICENSE`).\n\n| package | version | licence |\n"
        f"| --- | --- | --- |\n{lines}"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("audit", help="further options go to pip-audit")
    command = commands.add_parser("licences", help="hold to the allowlist, and list")
    command.add_argument("found", type=Path, help="what pip-licenses wrote, as JSON")
    given, options = parser.parse_known_args(arguments)
    try:
        if given.command == "audit":
            tool = [str(Path(sys.executable).parent / "pip-audit")]
            audit(tool, options, HERE, datetime.now(UTC).date())
            return 0
        if options:
            parser.error(f"unknown: {options}")
        found = json.loads(given.found.read_text(encoding="utf-8"))
        TABLE.write_text(table(licences(found, HERE)), encoding="utf-8")
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    print(f"{TABLE.name}: every licence is allowed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
