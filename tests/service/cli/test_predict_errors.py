"""The command `predict`: the model that it chooses for a file, and its errors."""

import io
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

from rich.console import Console

from service.cli import predict_file
from tests.service.cli.commands import assert_fails, invoke, plain, predict
from tests.support import tables
from tests.support.processes import environment, free_port
from tests.support.servers import CLASSES, ROOT, SECONDS


class TestModelChoice:
    def test_only_one_fits(self, service, table, tmp_path):
        """Without --model it is the only model with the file's features."""
        table, path = table
        renamed = dict(zip(tables.FEATURES, tables.STROKES, strict=True))
        strokes = table.rename(columns=renamed)
        strokes.to_csv(tmp_path / "strokes.csv", index=False)
        frame, _ = predict(tmp_path / "strokes.csv", "--url", service)
        assert list(frame)[-3:] == [f"probability_{n}" for n in CLASSES["tags"]]
        result = invoke("predict", path, "--url", service)
        message = f"{path}: fits several models: machines, moods; choose one with"
        assert_fails(result, message)

    def test_none_fits(self, service, table, tmp_path):
        """If no model fits, the features of all models are listed; a wrong row is an
        error of the model whose columns the file has."""
        path = tmp_path / "a.csv"
        path.write_text("x,y\n1,2\n")
        result = invoke("predict", path, "--url", service)
        assert_fails(result, f"{path}: its columns fit no model; there are: machines (")
        assert "strokes (dx, dy, pressure)" in result.stderr
        path.write_text("dx,dy,pressure\n1,2,3\n1,none at all,3\n")
        result = invoke("predict", path, "--url", service)
        assert_fails(result, f"{path}, line 3: column 'dy' is 'none at all'")

    def test_nearest_column(self, service, table, tmp_path):
        """With --model a missing feature is named with the nearest column."""
        table, _ = table
        path = tmp_path / "a.csv"
        table.rename(columns={"vib x": "Vib_X"}).to_csv(path, index=False)
        result = invoke("predict", path, "--url", service, "--model", "machines")
        assert_fails(result, "feature 'vib x' is missing; did you mean 'Vib_X'?")


class TestErrors:
    def test_one_line(self, service, named, table, tmp_path):
        """Each error is one line, before anything is written."""
        _, path = table
        url = f"http://127.0.0.1:{free_port()}"
        model = ("--model", "machines")
        for arguments, message in (
            ((tmp_path / "none.csv", *model), "No such file"),
            ((tmp_path / "a.xls", *model), "unknown format '.xls'"),
            ((path, *model, "-o", tmp_path / "a.xls"), "unknown format '.xls'"),
            ((path, *model, "-o", tmp_path / "x" / "a.csv"), "there is no folder"),
            ((path, *model, "--url", url), f"{url}: Connection refused"),
            ((path, *model, "-o", path), f"{path}: is the file to read; write to"),
            ((path, "--model", "nobody"), f"{service}: 404"),
            ((path, *model, "--label-column", "x"), "label column 'x' is missing"),
            ((path, "--bundle", named, "--model", "nobody"), "no bundle nobody"),
            ((path, "--bundle", tmp_path), "no bundle"),
            ((path, "--bundle", named), "fits several models: machines, moods;"),
        ):
            result = invoke("predict", "--url", service, *arguments)
            assert_fails(result, message)
            assert result.stdout == ""
        assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]

    def test_interrupted(self, service, table, tmp_path, monkeypatch):
        """Ctrl-C is exit code 130, and no file; too little memory is an error."""
        _, path = table
        for error, code in ((KeyboardInterrupt, 130), (MemoryError, 1)):

            def fail(*_, error=error):
                raise error

            monkeypatch.setattr(predict_file, "_ask", fail)
            command = (path, "--url", service, "--model", "machines")
            result = invoke("predict", *command, "-o", tmp_path / "a.csv")
            assert result.exit_code == code
            assert not (tmp_path / "a.csv").exists()
        assert_fails(result, "not enough memory")

    def test_progress(self):
        """A terminal shows a bar; elsewhere nothing is printed."""
        for terminal in (True, False):
            console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
            chosen = SimpleNamespace(reference="machines")
            with predict_file._bar(chosen, console) as progress:
                progress(1, 4)
                progress(4, 4)
            lines = plain(console.file.getvalue()).split()
            assert lines[-3:-1] == (["4/4", "sequences"] if terminal else [])

    def test_replaced_model(self, service, table, monkeypatch):
        """If another version answers than the one whose features were looked up, it is
        an error: its features may have another order."""
        _, path = table
        read = predict_file.model_choice.read

        def read_for_older(*arguments, **options):
            chosen, data = read(*arguments, **options)
            return replace(chosen, version="0"), data

        monkeypatch.setattr(predict_file.model_choice, "read", read_for_older)
        for command in ("predict", "classify"):
            result = invoke(command, path, "--url", service, "--model", "machines")
            assert_fails(result, "machines: version 0 was replaced by version 1")
            assert result.stdout == ""

    def test_closed_pipe(self, named, table):
        """Whoever reads only the first line gets it, without an error."""
        _, path = table
        script = (
            "import sys, time\n"
            "from service.__main__ import app\n"
            "sys.stdin.readline()\n"  # until nobody reads the output any more
            "app(sys.argv[1:])\n"
        )
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", script, "predict", str(path)),
                *("--bundle", str(named / "machines")),
            ],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate("\n", timeout=SECONDS)
        assert process.returncode == 0
        assert "Error" not in stderr
        assert "error" not in stderr
