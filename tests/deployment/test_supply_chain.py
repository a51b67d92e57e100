"""The hash locks, and the checks of `make audit` and `make licences`."""

import importlib.util
import re
import sys
from datetime import date

import pytest

from tests.support.servers import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
TODAY = date(2026, 3, 1)
RULES = 'allowed = ["MIT"]\n[stated]\nsilent = "MIT"\n'
FULL = "silent==1\nsplit==1 ; python_version < '3.12' \\\nsplit==2 ; python_version >= '3.12'\n"


@pytest.fixture(scope="module")
def check():
    """requirements/check.py as a module."""
    file = ROOT / "requirements" / "check.py"
    spec = importlib.util.spec_from_file_location("check", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """Locks and rules for a test."""
    (tmp_path / "waivers.toml").touch()
    (tmp_path / "licences.toml").write_text(RULES)
    for name in ("slim", "full", "ray", "dev"):
        (tmp_path / f"{name}.lock").write_text(FULL)
    return tmp_path


def installed(**changes):
    """The output of pip-licenses."""
    packages = {"silent": ("1", "UNKNOWN"), "split": ("2", "MIT")} | changes
    return [
        {"Name": name, "Version": version, "License": licence}
        for name, (version, licence) in packages.items()
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_locks_have_hashes_and_no_addresses(lock):
    """Each pin of a lock has hashes, and no lock names a package index."""
    text = lock.read_text()
    assert not re.search(r"https?://|^--|^-\w", text, re.MULTILINE)
    pins = re.findall(r"^\S.*(?:\n .*)*", re.sub(r"^#.*\n", "", text), re.MULTILINE)
    assert pins
    for pin in pins:
        assert re.match(r"[\w.-]+==\S+", pin), pin
        assert "--hash=sha256:" in pin, pin


@pytest.mark.parametrize("lock", ["slim", "train", "build"])
def test_locks_agree(check, lock):
    """A lock of `.venv` has the versions of dev.lock: none changes what another installed."""
    folder = ROOT / "requirements"
    pins = set(check.pins(folder / f"{lock}.lock"))
    assert pins
    assert pins <= set(check.pins(folder / "dev.lock"))


def test_serving_needs_no_tensorflow(check):
    """`make serve` installs neither TensorFlow nor what only tests and Ray need."""
    names = {name for name, _ in check.pins(ROOT / "requirements" / "slim.lock")}
    assert not names & {"tensorflow", "ray", "playwright", "pytest", "pandas", "polars"}


def test_installs_are_hash_locked():
    """Commands install packages with hashes, or this project from its folder."""
    files = [ROOT / "Makefile", ROOT / "Dockerfile", *ROOT.glob("*.md")]
    for file in files:
        text = file.read_text().replace("\\\n", " ")
        for line in re.findall(r".*\bpip3? (?:install|sync)\b.*", text):
            hashed = "--require-hashes" in line or "--no-index --no-deps" in line
            assert hashed, f"{file.name}: {line}"


def test_both_versions_are_audited(check, folder):
    """A version for another Python is audited too, in a second round."""
    pinned = check.pins(folder / "full.lock")
    assert check.rounds(pinned * 2) == [{"silent": "1", "split": "1"}, {"split": "2"}]


WAIVER = '[[waiver]]\nid = "X-1"\nreason = "{reason}"\nexpires = {expires}\n'


@pytest.mark.parametrize(
    ("reason", "expires", "why"),
    [
        pytest.param("unused", "2026-02-28", "expired on 2026-02-28", id="expired"),
        pytest.param("unused", "2027-01-01", "days away", id="for-ever"),
        pytest.param(" ", "2026-03-02", "has id, reason", id="no-reason"),
        pytest.param("unused", '"soon"', "no date", id="no-date"),
    ],
)
def test_waivers_are_refused(check, folder, reason, expires, why):
    """A waiver needs a reason and a date, and fails when it has expired."""
    file = folder / "waivers.toml"
    file.write_text(WAIVER.format(reason=reason, expires=expires))
    with pytest.raises(check.Refused, match=why):
        check.audit([], [], folder, TODAY)


def test_waivers_hold(check, folder, capfd):
    """pip-audit gets the waived vulnerabilities and the given options, in strict mode."""
    file = folder / "waivers.toml"
    file.write_text(WAIVER.format(reason="unused", expires="2026-03-01"))
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    check.audit(command, ["-s", "osv"], folder, TODAY)
    options = "'--no-deps', '-s', 'osv', '--ignore-vuln', 'X-1', '--requirement'"
    output = capfd.readouterr().out
    assert output.count(options) == 2
    assert output.count("'--strict'") == 2


def test_failed_audit(check, folder):
    """If pip-audit fails for any reason, the audit fails."""
    failing = [sys.executable, "-c", "raise SystemExit(1)"]
    with pytest.raises(check.Refused, match="no pass"):
        check.audit(failing, [], folder, TODAY)
    (folder / "dev.lock").write_text("")
    with pytest.raises(check.Refused, match="pins nothing"):
        check.audit(failing, [], folder, TODAY)


def test_licences_are_listed(check, folder):
    """Every pin is listed; a package without a licence has the stated one."""
    rows = check.licences(installed(other=("1", "GPL")), folder)
    assert rows == [
        ("silent", "1", "MIT"),
        ("split", "1", "MIT"),
        ("split", "2", "MIT"),
    ]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"split": ("2", "GPL")}, "'GPL' is not allowed", id="refused"),
        pytest.param({"split": ("2", "MIT AND GPL")}, "not allowed", id="part"),
        pytest.param({"split": ("2", "UNKNOWN")}, "'UNKNOWN' is not", id="unknown"),
        pytest.param({"split": ("3", "MIT")}, "3 is installed", id="another-version"),
        pytest.param({"silent": ("1", "GPL")}, "itself", id="not-silent"),
    ],
)
def test_licences_are_refused(check, folder, changes, why):
    """A licence that is not in the allowlist fails, and so does a version other than the
    lock's."""
    with pytest.raises(check.Refused, match=why):
        check.licences(installed(**changes), folder)


def test_licences_table(check):
    """docs/licences.md has exactly the pins of the full lock, all with allowed licences."""
    text = check.TABLE.read_text()
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| (.+) \|$", text, re.MULTILINE)
    assert [row[:2] for row in rows] == check.pins(ROOT / "requirements/full.lock")
    # As if each were installed with the listed licence.
    stated = (ROOT / "requirements/licences.toml").read_text().partition("[stated]")[2]
    packages = [
        {"Name": name, "Version": version, "License": licence}
        for name, version, licence in rows
        if f"\n{name} = " not in stated
    ]
    assert check.table(check.licences(packages, ROOT / "requirements")) == text
