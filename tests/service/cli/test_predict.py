"""The commands `classify`, `label` and `health`: files, output and bulk jobs."""

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from service.bulk.scorer import ShardResult
from service.cli import predict
from service.client import Client
from tests.service.cli.commands import assert_fails, invoke
from tests.support.bundles import random_frames
from tests.support.processes import free_port
from tests.support.servers import ROOT, SECONDS

FRAMES = random_frames(np.random.default_rng(0), 5)
FIRST = FRAMES.tolist()
GIB = 2**30


def npy(shape, kind, size):
    """A .npy file with this header, and with `size` bytes of data."""
    members = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n"
    head = members.encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head)) + head + bytes(size)


def pickled():
    """A .npy file with an object that ends the process if it is unpickled."""

    class Exit:
        def __reduce__(self):
            return os._exit, (9,)

    file = io.BytesIO()
    np.save(file, np.array([[Exit()]], object), allow_pickle=True)
    return file.getvalue()


def request(**members):
    return json.dumps({"sequences": [FIRST]} | members)


CSV = "".join(",".join(map(str, frame)) + "\n" for frame in FIRST)
LINES = "".join(json.dumps({"frames": frames}) + "\n" for frames in (FIRST, FIRST[:2]))
GOOD = [  # name, content, lengths of the sequences
    ("a.json", json.dumps({"sequences": [FIRST]}), [5]),
    ("a.json", json.dumps(FIRST), [5]),
    ("a.jsonl", LINES, [5, 2]),
    ("a.ndjson", LINES + "\n", [5, 2]),
    ("a.csv", CSV, [5]),
    ("a.csv", "x,y,z\n" + CSV, [5]),
    ("a.csv", CSV.replace("\n", "\r\n"), [5]),
    ("a.npy", FRAMES, [5]),
    ("a.npy", FRAMES.astype(np.float64), [5]),
    ("a.npy", np.asfortranarray(FRAMES), [5]),
]
BAD = {
    "a.json": [
        *("", "{", "{}", "5", '{"sequences": 5}', '{"sequences": [[["x"]]]}'),
        *("[[1, 2], [1]]", "[[1e39, 2, 3]]", "[[NaN, 2, 3]]", b"\xff\xfe"),
        *("[" * 100_000, "[" * 900 + "]" * 900),
        *(f"[[{'9' * 400}, 2, 3]]", f"[[{'9' * 5000}, 2, 3]]"),
        *(request(model=5), request(model="\ud800")),
        *(request(top_k=[1]), request(top_k=10**30)),
    ],
    "a.jsonl": ["[1]\n", '{"frame": []}\n', '{"frames": ' + "[" * 100_000],
    "a.csv": [
        *("", "1,2,3\n1,2\n", "1,2,3\n1,x,3\n", b"\xff\xfe"),
        "1,2,3\n" + "1" * 200_000 + ",2,3\n",
    ],
    "a.npy": [
        *(b"", b"\x93NUMPY", b"PK\x03\x04", b"\x93NUMPY\x09\x00v\x00{}", pickled()),
        *(np.zeros(3), np.zeros((2, 3), "U1"), np.zeros((2, 3), complex)),
        np.zeros((2, 0)),
        *(npy((2, 3), "<f4", 23), npy((2, 3), "<f4", 25)),  # a byte too few or many
        *(npy((10**9, 10**6), "<f4", 9), npy((0, 2**70), "<f4", 9)),
        *(npy((2**32, 2**32), "<f4", 0), npy((-2, -3), "<f4", 24)),
        *(npy((2, 3), "V0", 0), npy((2, 3), "|O", 24)),
        *(npy("(" * 5000, "<f4", 24), npy("-" * 5000 + "1", "<f4", 24)),
        *(npy("'" * 3, "<f4", 24), npy("'\\z'", "<f4", 24)),
        *(npy(" " * 20_000, "<f4", 24), npy((2, 3), "<f4", 24)[:40]),
    ],
}


def assert_no_answer(result, start):
    """The command failed with a line that starts so, and printed no answer."""
    assert_fails(result)
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {start}"), result.stderr


class TestAskService:
    @pytest.mark.parametrize("command", ["classify", "label"])
    def test_formats(self, server, write, command):
        """Files of all formats give the answers that the client gives."""
        with Client(server) as client:
            method = getattr(client, command)
            answers = {n: method([FRAMES[:n]]).predictions[0] for n in (5, 2)}
        for name, content, lengths in GOOD:
            result = invoke(command, write(name, content), "--url", server)
            assert result.exit_code == 0, result.output
            lines = [json.loads(line) for line in result.stdout.splitlines()]
            for line, length in zip(lines, lengths, strict=True):
                answer = answers[length]
                np.testing.assert_allclose(
                    line["probabilities"], answer.probabilities, atol=1e-5
                )
                if command == "classify":
                    assert line["label"] == answer.label
                else:
                    assert line["labels"] == answer.labels

    def test_model_and_top_k(self, server, write):
        """The model is that of `--model`, or of the request in the file; `--top-k`
        prints the likeliest classes."""
        path = write("a.json", json.dumps({"sequences": [FIRST], "model": "both"}))
        by_file = invoke("label", path, "--url", server, "--top-k", 1)
        by_option = invoke("label", path, "--url", server, "--model", "tags")
        top = json.loads(by_file.stdout)["top"]
        assert [len(step) for step in top] == [1] * 5
        assert {step[0]["label"] for step in top} <= {"down", "flat", "up"}
        labels = json.loads(by_option.stdout)["labels"]
        assert set(labels) <= {"noun", "verb", "other"}

    def test_bad_files(self, server, write, tmp_path):
        """A file that is missing or holds no sequence is an error of one line."""
        for name, contents in BAD.items():
            for content in contents:
                path = write(name, content)
                assert_no_answer(invoke("classify", path, "--url", server), str(path))
        for name in ("none.json", "none.csv", "none.npy", "."):
            path = tmp_path / name
            assert_no_answer(invoke("classify", path, "--url", server), f"{path}: ")

    def test_refused(self, server, write):
        """So is a request that the service refuses."""
        for name, content in (
            ("a.npy", np.zeros((2, 2))),
            ("a.json", '{"sequences": []}'),
        ):
            path = write(name, content)
            result = invoke("classify", path, "--url", server)
            assert_no_answer(result, f"{server}: 422 ")
        path = write("a.json", json.dumps(FIRST))
        result = invoke("classify", path, "--url", server, "--model", "nobody")
        assert_no_answer(result, f"{server}: 404 ")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["a.json", "a.npy"])
    def test_large_file(self, tmp_path, name):
        """So is a file that is larger than the memory."""
        path = tmp_path / name
        path.write_bytes(npy((2**32, 1), "<f4", 0) if name == "a.npy" else b"")
        os.truncate(path, path.stat().st_size + 16 * GIB)
        script = (
            "import resource\n"
            f"resource.setrlimit(resource.RLIMIT_AS, ({3 * GIB // 2},) * 2)\n"
            "from service.__main__ import app\n"
            f"app(['classify', {str(path)!r}])\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {path}: ")

    def test_no_service(self, write):
        """So is a service that can't be reached; the line says how to start one."""
        url = f"http://127.0.0.1:{free_port()}"
        path = write("a.json", json.dumps(FIRST))
        for command in ("classify", "label"):
            result = invoke(command, path, "--url", url)
            assert_no_answer(result, f"{url}: Connection refused")
        result = invoke("health", "--url", url)
        assert result.exit_code == 1
        assert result.stdout.startswith(f"{url}: Connection refused")

    def test_health(self, server):
        """`health` prints that a ready service is ready."""
        result = invoke("health", "--url", server)
        assert (result.exit_code, result.stdout) == (0, "ready\n")


def test_default_output():
    """The output folder is FILE.TASK; the query of a URI stays at the end."""
    for file, folder in (
        ("a/b.jsonl", "a/b.jsonl.label"),
        ("what?.jsonl", "what?.jsonl.label"),
        ("s3://a/b.jsonl?region=x", "s3://a/b.jsonl.label?region=x"),
    ):
        assert predict._default_output(file, "label") == folder


class TestBulkJob:
    def test_only_with_ray(self, tmp_path):
        """--to needs --engine ray."""
        result = invoke("classify", "a.json", "--to", tmp_path)
        assert result.exit_code == 2
        assert "--to and --bundles need --engine ray" in result.output

    def test_without_ray(self, tmp_path):
        """If Ray is not installed it says so, and writes nothing."""
        if importlib.util.find_spec("ray"):
            pytest.skip("Ray is installed")
        result = invoke("label", tmp_path / "a.jsonl", "--engine", "ray")
        assert result.exit_code == 1
        assert "ray is not installed: pip install 'WHEEL[ray]'" in result.output
        assert not list(tmp_path.iterdir())

    def test_progress(self, capsys, monkeypatch):
        """If stderr is no terminal, progress is a line now and then."""
        monkeypatch.setattr(predict, "LOG_SECONDS", -1)
        with predict.JobProgress(3, 1) as progress:
            for _ in range(2):
                progress.add(ShardResult(b"", 10, 200, 1))
        assert progress.totals == {"sequences": 20, "steps": 400, "refused": 2}
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "1 of 3 shards are there already"
        assert [line.partition(",")[0] for line in lines[1:]] == [
            "2 of 3 shards: 10 sequences",
            "3 of 3 shards: 20 sequences",
        ]
