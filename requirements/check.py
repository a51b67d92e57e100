"""Check every pin of the locks for vulnerabilities (`make audit`) and licences.

pip-audit and pip-licenses see only what would be installed on this machine. A lock also
has pins for other machines and Python versions.
"""

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
LONGEST = timedelta(days=180)  # of a waiver
TABLE = HERE.parent / "docs" / "licences.md"
UNKNOWN = "UNKNOWN"


class Refused(Exception):
    """The check fails; the text says why."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: Path) -> list[tuple[str, str]]:
    """Return name and version of every line, for whatever machine it is."""
    text = lock.read_text(encoding="utf-8")
    lines = re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)
    if not lines:
        raise Refused(f"{lock.name} pins nothing")
    return [(canonical(name), version) for name, version in lines]


def rounds(pinned: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Split the pins so that each round has one version of a package.

    pip-audit refuses two, and a lock has two where Python versions need different ones.
    """
    result: list[dict[str, str]] = []
    for name, version in sorted(set(pinned)):
        for versions in result:
            if name not in versions:
                versions[name] = version
                break
        else:
            result.append({name: version})
    return result


def waived(file: Path, today: date) -> list[str]:
    """Return the ids that pip-audit may ignore; an expired waiver fails."""
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
    """Look every pin of the locks up in the database of vulnerabilities."""
    ignored = [
        part
        for vulnerability in waived(folder / "waivers.toml", today)
        for part in ("--ignore-vuln", vulnerability)
    ]
    pinned = [pin for lock in LOCKS for pin in pins(folder / f"{lock}.lock")]
    # Without --strict, packages that the database can't answer for pass.
    command = [*tool, "--strict", "--disable-pip", "--no-deps", *options, *ignored]
    for number, versions in enumerate(rounds(pinned)):
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / f"round-{number}.txt"
            file.write_text("".join(f"{n}=={v}\n" for n, v in versions.items()))
            if subprocess.run([*command, "--requirement", str(file)]).returncode:
                raise Refused(
                    "audit failed: vulnerabilities are listed above, or else the "
                    "database could not be asked, which is no pass either"
                )
        count = len(versions)
        print(f"{count} pins: no vulnerability that is not waived", flush=True)


def licences(
    packages: list[dict[str, str]], folder: Path
) -> list[tuple[str, str, str]]:
    """Return name, version and licence of every pin of the full lock.

    Args:
        packages: what pip-licenses wrote.
    """
    rules = tomllib.loads((folder / "licences.toml").read_text(encoding="utf-8"))
    stated, allowed = rules["stated"], set(rules["allowed"])
    installed = {canonical(package["Name"]): package for package in packages}
    rows, wrong = [], []
    pinned = pins(folder / "full.lock")
    versions: dict[str, set[str]] = {}
    for name, version in pinned:
        versions.setdefault(name, set()).add(version)
    for name, version in pinned:
        package = installed.get(name, {"Version": "", "License": UNKNOWN})
        if package["Version"] and package["Version"] not in versions[name]:
            wrong.append(f"{name}: {package['Version']} is installed, not the lock's")
        licence = package["License"]
        if licence == UNKNOWN:
            licence = stated.get(name, UNKNOWN)
        elif name in stated:
            wrong.append(f"{name}: says {licence} itself: remove it from [stated]")
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
        "# Licences\n\nThe licences of all packages in `requirements/full.lock` (the "
        "slim image has a part of them). Each is as\nthe package states it, or else as "
        "its licence file does (`requirements/licences.toml`). Generated by\n`make "
        "licences`.\n\nThe playground includes uPlot 1.6.32 under the MIT licence\n"
        "(`service/playground/vendor/uPlot.LICENSE`).\n\n| package | version | licence |\n"
        f"| --- | --- | --- |\n{lines}"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("audit", help="further options go to pip-audit")
    command = commands.add_parser(
        "licences", help="check the allowlist, write the list"
    )
    command.add_argument("packages", type=Path, help="JSON that pip-licenses wrote")
    options, others = parser.parse_known_args(arguments)
    try:
        if options.command == "audit":
            tool = [str(Path(sys.executable).parent / "pip-audit")]
            audit(tool, others, HERE, datetime.now(UTC).date())
            return 0
        if others:
            parser.error(f"unknown: {others}")
        packages = json.loads(options.packages.read_text(encoding="utf-8"))
        TABLE.write_text(table(licences(packages, HERE)), encoding="utf-8")
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    print(f"{TABLE.name}: every licence is allowed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
