"""The commands `versions`, `promote` and `rollback`."""

import json
import shutil

import pytest

from model.bundle import bundle, labels
from tests.service.cli.commands import invoke
from tests.support.bundles import copy_bundle


@pytest.fixture
def roots(bundles, tmp_path):
    """Two folders: `walks` has versions 1 and 2 in the first, 3 in the second."""
    for version in (1, 2, 3):
        root = tmp_path / ("second" if version == 3 else "first")
        copy_bundle(
            bundles / "walks" / "1", root / "walks" / str(version), version=str(version)
        )
    shutil.copytree(bundles / "tags", tmp_path / "first" / "tags")
    return tmp_path / "first", tmp_path / "second"


def ask(*words, roots):
    """The lines that a command prints about folders."""
    result = invoke(*words, "--bundles", ",".join(map(str, roots)))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def refusal(*words, roots):
    """The one line with which a command is refused."""
    result = invoke(*words, "--bundles", ",".join(map(str, roots)))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


class TestVersions:
    def test_table(self, roots):
        """Each version has a row, the newest first: date, errors, labels and folder."""
        labels.promote([root / "walks" for root in roots], 2)
        metadata = bundle.read(roots[0] / "walks" / "2").metadata
        parts = {
            "test": {"count": 9, "error": 1.5, "macro_f1": 9, "calibration_error": 3}
        }
        record = metadata.training.model_dump() | {"parts": parts}
        marker = roots[0] / "walks" / "2" / bundle.MARKER
        marker.write_text(
            json.dumps(json.loads(marker.read_text()) | {"training": record})
        )
        (roots[1] / "walks" / "3" / bundle.MARKER).write_text("{")
        head, *lines = ask("versions", "walks", roots=roots)
        assert head.split()[:3] == ["name", "version", "created"]
        third, second, first = [line.split() for line in lines]
        assert third[:3] == ["walks", "3", "broken"]
        assert second[:6] == ["walks", "2", "2026-01-01", "1.50", "3.00", "default"]
        assert first[:3] == ["walks", "1", "2026-01-01"]
        assert "default" not in first
        assert second[-1] == str(roots[0] / "walks" / "2")
        rows = [line.split()[:2] for line in ask("versions", roots=roots)[1:]]
        names = ["tags", "walks", "walks", "walks"]
        assert rows == [[n, v] for n, v in zip(names, "1321", strict=True)]

    def test_newest_is_the_default(self, roots):
        """Without labels the newest version is the default."""
        rows = [line.split() for line in ask("versions", "walks", roots=roots)[1:]]
        assert ["default" in row for row in rows] == [True, False, False]

    def test_broken_labels(self, roots):
        """They are reported after the table, which has the other names' labels."""
        (roots[1] / "walks" / labels.LABELS).write_text('{"default": 9}')
        result = invoke("versions", "--bundles", ",".join(map(str, roots)))
        rows = [line.split() for line in result.stdout.splitlines()[1:]]
        assert ["default" in row for row in rows] == [True, False, False, False]
        assert ["broken" in row for row in rows] == [False, True, True, True]
        assert result.exit_code == 2
        assert "labels.json: default: there is no version 9" in result.stderr

    def test_refused(self, roots, tmp_path):
        """An unknown name is refused with a similar one, and so are no bundles."""
        line = refusal("versions", "walk", roots=roots)
        assert "no bundle walk (did you mean walks?); there are: tags, walks" in line
        assert "no bundle found" in refusal("versions", roots=[tmp_path / "none"])
        single = roots[0] / "walks" / "1"
        assert "is a single bundle" in refusal("versions", "walks", roots=[single])


class TestPromote:
    def test_and_back(self, roots):
        """`promote` names the version that was served before, and `rollback` serves it
        again. Labels are written to the last folder."""
        paths = [root / "walks" for root in roots]
        (line,) = ask("promote", "walks@1", roots=roots)
        assert line == "default of walks is version 1 (before: 3)"
        assert not (paths[0] / labels.LABELS).exists()
        assert json.loads((paths[1] / labels.LABELS).read_text()) == {"default": 1}
        assert ask("promote", "walks@1", roots=roots)[0].endswith("1 (as before)")
        ask("promote", "walks@2", "--label", "next", roots=roots)
        (line,) = ask("promote", "walks@next", roots=roots)
        assert line == "default of walks is version 2 (before: 1)"
        (line,) = ask("rollback", "walks", roots=roots)
        assert line == "default of walks is version 1 (before: 2)"
        assert labels.read(*paths) == {"default": 1, "next": 2}

    def test_refused(self, roots):
        """A version that is missing, broken or another one changes nothing."""
        available = "available: 1, 2, 3"
        for reference in ("walks@4", "walks", "walks@", "walks@none", "walks@1@2"):
            assert available in refusal("promote", reference, roots=roots)
        assert "no bundle none" in refusal("promote", "none@1", roots=roots)
        (roots[0] / "walks" / "1" / "saved_model.pb").write_bytes(b"none")
        line = refusal("promote", "walks@1", roots=roots)
        assert "saved_model.pb: SHA-256 differs" in line
        marker = roots[0] / "walks" / "2" / bundle.MARKER
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": "7"}))
        assert "holds walks, version 7" in refusal("promote", "walks@2", roots=roots)
        line = refusal("promote", "walks@3", "--label", "latest", roots=roots)
        assert "'latest' can't be a label" in line
        assert "no other version was the default" in refusal(
            "rollback", "walks", roots=roots
        )
        assert not (roots[1] / "walks" / labels.LABELS).exists()

    def test_broken_before(self, roots):
        """`rollback` to a broken version changes nothing."""
        for reference in ("walks@1", "walks@2"):
            ask("promote", reference, roots=roots)
        (roots[0] / "walks" / "1" / "saved_model.pb").write_bytes(b"none")
        line = refusal("rollback", "walks", roots=roots)
        assert "saved_model.pb: SHA-256 differs" in line
        assert labels.read(*(root / "walks" for root in roots)) == {"default": 2}

    def test_object_store(self):
        """Folders in an object store are refused, without the key in the address."""
        line = refusal("promote", "walks@1", roots=["s3://me:secret@bucket/a"])
        assert "s3://bucket/a: only the labels of local folders can be changed" in line
        assert "secret" not in line

    def test_environment(self, roots, monkeypatch):
        """Without the option the service's setting names the folders."""
        monkeypatch.setenv("UNROLLED_BUNDLES", str(roots[0]))
        result = invoke("promote", "walks@1")
        assert result.stdout == "default of walks is version 1 (before: 2)\n"
        monkeypatch.setenv("UNROLLED_BUNDLES", f"{roots[0]},")
        result = invoke("promote", "walks@1")
        assert result.exit_code == 2
        assert "UNROLLED_BUNDLES: must be folders" in result.stderr
