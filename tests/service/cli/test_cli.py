"""The commands, as processes and against a running service."""

import concurrent.futures
import io
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from model.bundle import bundle
from service import __main__ as main
from service.client import Client
from tests.support.bundles import copy_bundle, random_frames
from tests.support.processes import (
    Started,
    environment,
    family,
    free_port,
    processes,
    run,
    serving,
    standing_still,
)
from tests.support.servers import ROOT, SECONDS, value, wait

FRAMES = random_frames(np.random.default_rng(0), 5)
FIRST = FRAMES.tolist()
KEY = "a key of the tests"
GIB = 2**30


@pytest.fixture(scope="module")
def started(bundles, tmp_path_factory):
    """One that is set by the environment and by flags, ready."""
    variables = {
        "UNROLLED_BUNDLES": str(bundles),
        "UNROLLED_PORT": "1",  # the flag goes first
        "UNROLLED_DEFAULT_LABEL": "tags",
        "UNROLLED_LOG_LEVEL": "debug",
        "UNROLLED_STATE_KEY": KEY,
    }
    with serving(tmp_path_factory.mktemp("serve"), **variables) as made:
        wait(lambda: made.answers("/readyz"), "it is ready")
        yield made


def _few_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))


class TestServe:
    def test_few_files(self, bundles, tmp_path):
        """Where the system allows few open files, fewer connections are allowed than the
        setting has: those that say nothing make room, and probes are answered."""
        port, output = free_port(), tmp_path / "log"
        command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
        command += ["--bundles", str(bundles / "walks"), "--workers", "1"]
        with output.open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdout=file,
                stderr=file,
                preexec_fn=_few_files,
            )
        started = Started(process, f"http://127.0.0.1:{port}", output)
        try:
            wait(lambda: started.answers("/readyz"), "it is ready")
            with ExitStack() as stack:
                for _ in range(60):
                    at = ("127.0.0.1", port)
                    stack.enter_context(socket.create_connection(at, SECONDS))
                assert all(started.answers("/livez") for _ in range(5))
            assert "the limit of open files allows" in output.read_text()
        finally:
            process.terminate()
            process.wait(SECONDS)

    def test_port_opens_first(self, bundles, tmp_path):
        """The port is open, and /livez answers, before the models are loaded."""
        folder = copy_bundle(bundles / "walks" / "1", tmp_path / "walks" / "1")
        with (folder / "saved_model.pb").open("ab") as file:
            file.truncate(bundle.MAX_BYTES - 2**20)  # whose digest takes seconds
        with serving(tmp_path, "--bundles", tmp_path) as made:
            response = httpx.get(f"{made.url}/readyz")
            assert response.status_code == 503
            assert response.json()["reasons"] == ["loading the bundles"]
            assert made.answers("/livez")

    def test_settings_count(self, started, bundles):
        """What variables and flags say is what is served."""
        body = httpx.get(f"{started.url}/models").json()
        names = {model["name"]: model["default"] for model in body["models"]}
        assert names == {"both": False, "tags": True, "walks": True}

    def test_answers(self, started, server):
        """It answers what the same bundles answer elsewhere."""
        with Client(started.url) as ours, Client(server) as theirs:
            assert {model["engine"] for model in ours.models()} == {"onnx"}
            given, expected = (
                client.classify([FRAMES]).predictions[0].probabilities
                for client in (ours, theirs)
            )
        np.testing.assert_allclose(given, expected, atol=1e-5)

    def test_log(self, started):
        """Not on a terminal every line of its output is a JSON record, with the
        start and the models in it."""

        def there():
            return any(record["message"] == "ready" for record in started.records())

        wait(there, "the lines are written")
        records = started.records()
        messages = [record["message"] for record in records]
        assert messages.count("loaded") == 3
        assert messages.count("ready") == 1
        ready = records[messages.index("ready")]
        assert ready["models"] == ["both", "tags", "walks"]
        assert {record["level"] for record in records} <= {"debug", "info"}

    def test_classify_command(self, started, tmp_path):
        """`classify FILE` as a process prints a JSON object a line."""
        file = tmp_path / "frames.json"
        file.write_text(json.dumps({"sequences": [FIRST, FIRST[:1]]}))
        result = run("classify", str(file), "--url", started.url)
        assert (result.returncode, result.stderr) == (0, "")
        predictions = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(predictions) == 2
        assert set(predictions[0]) >= {"label", "probability"}

    def test_standard_input(self, started):
        """`-` reads the request from standard input."""
        result = subprocess.run(
            [sys.executable, "-m", "service", "label", "-", "--url", started.url],
            cwd=ROOT,
            input=json.dumps(FIRST),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert len(json.loads(result.stdout)["labels"]) == 5

    def test_health_command(self, started):
        """`health` says ready, with exit code 0."""
        result = run("health", "--url", started.url)
        assert (result.returncode, result.stdout) == (0, "ready\n")

    def test_stop(self, started):
        """Told to stop with requests under way it takes no new ones, answers those,
        then ends with exit code 0; its key stands nowhere in its output. (Last: the
        process is gone then.)"""
        frames, models = [[0.5, -1.0, 2.0]] * 1_000, ("walks", "tags")

        def ask(number):
            body = {"sequences": [frames], "model": models[number % 2]}
            path = ("/classify", "/label")[number % 2]
            return httpx.post(started.url + path, json=body, timeout=SECONDS)

        def total(name):
            text = httpx.get(f"{started.url}/metrics").text
            return sum(value(text, name, model=model) for model in models)

        def refuses():
            try:
                httpx.get(f"{started.url}/livez")
            except httpx.TransportError:  # or it is reset while that happens
                return True
            return False

        before = total("unrolled_sequence_steps_count")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            # So that the requests are under way for sure.
            with standing_still(started.process):
                asked = [pool.submit(ask, number) for number in range(4)]
                wait(
                    lambda: total("unrolled_sequence_steps_count") == before + 4,
                    "all are admitted",
                )
                assert total("unrolled_waiting_steps") == 4_000
                started.process.send_signal(signal.SIGTERM)
                wait(refuses, "it takes no new ones")
                assert not any(future.done() for future in asked)
            results = [future.result(SECONDS) for future in asked]
        assert [response.status_code for response in results] == [200] * 4
        assert started.process.wait(SECONDS) == 0
        text = started.output.read_text()
        assert "Traceback" not in text
        assert KEY not in text
        assert {r["level"] for r in started.records()} <= {"debug", "info"}


class TestNothingIsLeft:
    @pytest.mark.parametrize(
        "signals",
        [[signal.SIGTERM], [signal.SIGINT], [signal.SIGKILL], [signal.SIGTERM] * 2],
        ids=["told", "ctrl-c", "killed", "told-twice"],
    )
    def test_processes(self, bundles, tmp_path, signals):
        """However it ends, its workers and other processes end with it."""
        flags = ("--bundles", bundles / "walks", "--workers", 2)
        with serving(tmp_path, *flags) as made:
            wait(lambda: made.answers("/readyz"), "it is ready")
            everybody = family(made.process)
            assert len(everybody) > 2
            for number in signals:
                made.process.send_signal(number)
            made.process.wait(SECONDS)
            wait(lambda: not everybody & processes().keys(), "none is left")
            assert "Traceback" not in made.output.read_text()


class TestRefusesToServe:
    def test_broken_bundle(self, bundles, tmp_path):
        """A bundle with a changed file ends the process with exit code 3 and one
        line that names the file."""
        folder = copy_bundle(bundles / "walks" / "1", tmp_path / "walks" / "1")
        weights = folder / "variables" / "variables.data-00000-of-00001"
        content = bytearray(weights.read_bytes())
        content[100] ^= 1
        weights.write_bytes(content)
        result = run("serve", "--port", "0", UNROLLED_BUNDLES=str(tmp_path))
        assert result.returncode == 3
        output = result.stdout + result.stderr
        (line,) = (line for line in output.splitlines() if str(weights) in line)
        record = json.loads(line)
        assert record["level"] == "error"
        assert record["message"] == (
            f"broken bundle: {weights}: SHA-256 differs from assets.extra/bundle.json"
        )
        assert "Traceback" not in output

    @pytest.mark.parametrize("skip", ["--no-skip-broken", "--skip-broken"])
    def test_no_bundle(self, tmp_path, skip):
        """So does a folder without any bundle, also when broken ones are skipped."""
        arguments = ("--port", "0", "--bundles", str(tmp_path), skip)
        result = run("serve", *arguments, timeout=15)
        assert result.returncode == 3
        assert f"{tmp_path}: no bundle found" in result.stdout

    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ({"UNROLLED_PROT": "80"}, "UNROLLED_PROT: no such setting"),
            ({"UNROLLED_MAX_BODY_BYTES": "0"}, "UNROLLED_MAX_BODY_BYTES"),
        ],
    )
    def test_setting(self, variables, said):
        """A setting that is wrong ends it at once with exit code 2, and is named."""
        result = run("serve", **variables)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert said in line
        assert result.stdout == ""

    def test_port_in_use(self, bundles, monkeypatch, caplog):
        """A port that is taken ends it with exit code 1, and the reason."""
        # In this process, where TensorFlow is loaded; the log stays the tests'.
        monkeypatch.setattr("service.telemetry.logs.setup", lambda *_: None)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            result = invoke("serve", "--port", port, "--bundles", bundles / "walks")
        assert isinstance(result.exception, SystemExit)
        assert "address already in use" in caplog.text
        assert str(port) in caplog.text
        assert result.exit_code == 1


def test_light():
    """Help and settings come without TensorFlow or another engine's library."""
    commands = (["--help"], ["serve", "--help"], ["classify", "--help"], ["settings"])
    script = (
        "import runpy, sys\n"
        f"for command in {commands!r}:\n"
        "    sys.argv = ['service', *command]\n"
        "    try:\n"
        "        runpy.run_module('service', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, end.code\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    shown, _, loaded = result.stdout.rpartition("LOADED")
    for part in ("Serve recurrent networks", "--max-body-bytes", "UNROLLED_PORT="):
        assert part in shown
    heavy = {"tensorflow", "keras", "onnx", "onnxruntime", "matplotlib"}
    assert not heavy & set(loaded.split())


def invoke(*arguments):
    return CliRunner().invoke(main.app, list(map(str, arguments)))


@pytest.fixture
def write(tmp_path):
    """Write a file of the caller's; its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        return path

    return write


def npy(shape, kind, size):
    """A file of NumPy's whose header says that, with so many bytes of data."""
    members = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n"
    head = members.encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head)) + head + bytes(size)


def pickled():
    """One with an object that would end this process, were it made."""

    class Bomb:
        def __reduce__(self):
            return os._exit, (9,)

    file = io.BytesIO()
    np.save(file, np.array([[Bomb()]], object), allow_pickle=True)
    return file.getvalue()


def request(**members):
    return json.dumps({"sequences": [FIRST]} | members)


CSV = "".join(",".join(map(str, frame)) + "\n" for frame in FIRST)
LINES = "".join(json.dumps({"frames": frames}) + "\n" for frames in (FIRST, FIRST[:2]))
GOOD = [
    pytest.param("a.json", json.dumps({"sequences": [FIRST]}), [5], id="request"),
    pytest.param("a.json", json.dumps(FIRST), [5], id="frames"),
    pytest.param("a.jsonl", LINES, [5, 2], id="json-lines"),
    pytest.param("a.ndjson", LINES + "\n", [5, 2], id="ndjson"),
    pytest.param("a.csv", CSV, [5], id="csv"),
    pytest.param("a.csv", "x,y,z\n" + CSV, [5], id="csv-with-header"),
    pytest.param("a.csv", CSV.replace("\n", "\r\n"), [5], id="csv-of-windows"),
    pytest.param("a.npy", FRAMES, [5], id="npy"),
    pytest.param("a.npy", FRAMES.astype(np.float64), [5], id="npy-float64"),
    pytest.param("a.npy", np.asfortranarray(FRAMES), [5], id="npy-fortran"),
]
BAD = [
    pytest.param("a.json", "", id="json-empty"),
    pytest.param("a.json", "{", id="json-broken"),
    pytest.param("a.json", "[" * 100_000, id="json-deep"),
    pytest.param("a.json", "{}", id="json-no-sequences"),
    pytest.param("a.json", '{"sequences": 5}', id="json-number"),
    pytest.param("a.json", '{"sequences": [[["x"]]]}', id="json-word"),
    pytest.param("a.json", "5", id="json-only-number"),
    pytest.param("a.json", "[[1, 2], [1]]", id="json-ragged"),
    pytest.param("a.json", "[[1e39, 2, 3]]", id="json-too-large"),
    pytest.param("a.json", "[[NaN, 2, 3]]", id="json-nan"),
    pytest.param("a.json", b"\xff\xfe", id="json-binary"),
    pytest.param("a.jsonl", "[1]\n", id="json-lines-list"),
    pytest.param("a.jsonl", '{"frame": []}\n', id="json-lines-other-key"),
    pytest.param("a.csv", "", id="csv-empty"),
    pytest.param("a.csv", "1,2,3\n1,2\n", id="csv-ragged"),
    pytest.param("a.csv", "1,2,3\n1,x,3\n", id="csv-word"),
    pytest.param("a.csv", "1,2,3\n" + "1" * 200_000 + ",2,3\n", id="csv-long-field"),
    pytest.param("a.csv", b"\xff\xfe", id="csv-binary"),
    pytest.param("a.npy", b"", id="npy-empty"),
    pytest.param("a.npy", b"\x93NUMPY", id="npy-truncated"),
    pytest.param("a.npy", b"PK\x03\x04", id="npy-that-is-a-zip"),
    pytest.param("a.npy", np.zeros(3), id="npy-one-axis"),
    pytest.param("a.npy", np.zeros((2, 3), "U1"), id="npy-of-text"),
    pytest.param("a.npy", np.zeros((2, 3), complex), id="npy-complex"),
    pytest.param("a.npy", np.zeros((2, 0)), id="npy-no-features"),
    pytest.param("a.npy", npy((2, 3), "<f4", 23), id="npy-one-byte-short"),
    pytest.param("a.npy", npy((2, 3), "<f4", 25), id="npy-one-byte-long"),
    pytest.param("a.npy", npy((10**9, 10**6), "<f4", 9), id="npy-huge"),
    pytest.param("a.npy", npy((0, 2**70), "<f4", 9), id="npy-huge-and-empty"),
    pytest.param("a.npy", npy((2**32, 2**32), "<f4", 0), id="npy-overflow"),
    pytest.param("a.npy", npy((-2, -3), "<f4", 24), id="npy-negative"),
    pytest.param("a.npy", npy((2, 3), "V0", 0), id="npy-of-nothing"),
    pytest.param("a.npy", npy((2, 3), "|O", 24), id="npy-of-objects"),
    pytest.param("a.npy", npy("(" * 5000, "<f4", 24), id="npy-deep"),
    pytest.param("a.npy", npy("-" * 5000 + "1", "<f4", 24), id="npy-deep-signs"),
    pytest.param("a.npy", npy("'" * 3, "<f4", 24), id="npy-open-text"),
    pytest.param("a.npy", npy("'\\z'", "<f4", 24), id="npy-odd-escape"),
    pytest.param("a.npy", npy(" " * 20_000, "<f4", 24), id="npy-long-header"),
    pytest.param("a.npy", npy((2, 3), "<f4", 24)[:40], id="npy-half-a-header"),
    pytest.param("a.npy", b"\x93NUMPY\x09\x00v\x00{}", id="npy-of-later"),
    pytest.param("a.npy", pickled(), id="npy-pickled"),
    pytest.param("a.json", f"[[{'9' * 400}, 2, 3]]", id="json-400-digits"),
    pytest.param("a.json", f"[[{'9' * 5000}, 2, 3]]", id="json-5000-digits"),
    pytest.param("a.json", "[" * 900 + "]" * 900, id="json-deep-but-read"),
    pytest.param("a.jsonl", '{"frames": ' + "[" * 100_000, id="json-lines-deep"),
    pytest.param("a.json", request(model=5), id="json-model-number"),
    pytest.param("a.json", request(model="\ud800"), id="json-model-no-text"),
    pytest.param("a.json", request(top_k=[1]), id="json-top-k-list"),
    pytest.param("a.json", request(top_k=10**30), id="json-top-k-large"),
]


class TestAsk:
    @pytest.mark.parametrize(("name", "content", "lengths"), GOOD)
    @pytest.mark.parametrize("command", ["classify", "label"])
    def test_file(self, server, write, command, name, content, lengths):
        """Each kind of file is answered as the client answers its frames."""
        path = write(name, content)
        result = invoke(command, path, "--url", server)
        assert result.exit_code == 0, result.output
        predictions = [json.loads(line) for line in result.stdout.splitlines()]
        with Client(server) as client:
            answer = getattr(client, command)([FRAMES[:n] for n in lengths])
        assert len(predictions) == len(lengths)
        for given, expected in zip(predictions, answer.predictions, strict=True):
            np.testing.assert_allclose(
                given["probabilities"], expected.probabilities, atol=1e-5
            )
            if command == "classify":
                assert given["label"] == expected.label
            else:
                assert given["labels"] == expected.labels

    def test_model_and_top_k(self, server, write):
        """A model is chosen by flag, or by the file's own word; `--top-k` shortens."""
        path = write("a.json", json.dumps({"sequences": [FIRST], "model": "both"}))
        by_file = invoke("label", path, "--url", server, "--top-k", 1)
        by_flag = invoke("label", path, "--url", server, "--model", "tags")
        top = json.loads(by_file.stdout)["top"]
        assert [len(step) for step in top] == [1] * 5
        assert {step[0]["label"] for step in top} <= {"down", "flat", "up"}
        assert set(json.loads(by_flag.stdout)["labels"]) <= {"noun", "verb", "other"}

    @pytest.mark.parametrize(("name", "content"), BAD)
    def test_bad_file(self, server, write, name, content):
        """A file that holds nothing to ask is told in one line, with exit code 1."""
        path = write(name, content)
        result = invoke("classify", path, "--url", server)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith(f"error: {path}: ")
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            pytest.param("a.npy", np.zeros((2, 2)), id="features"),
            pytest.param("a.jsonl", "\n", id="none"),
        ],
    )
    def test_refused_file(self, server, write, name, content):
        """So is one that the service refuses."""
        result = invoke("classify", write(name, content), "--url", server)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: 422 ")
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize("name", ["a.json", "a.npy"])
    def test_large_file(self, tmp_path, name):
        """So is one for which there is not the memory, without a traceback."""
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

    @pytest.mark.parametrize("name", ["none.json", "none.csv", "none.npy", "."])
    def test_no_file(self, server, tmp_path, name):
        """So is one that isn't there, by its name."""
        result = invoke("classify", tmp_path / name, "--url", server)
        assert isinstance(result.exception, SystemExit)
        assert result.exit_code == 1
        assert str(tmp_path / name) in result.stderr

    def test_refused(self, server, write):
        """So is what the service refuses, with its reason."""
        path = write("a.json", json.dumps(FIRST))
        result = invoke("classify", path, "--url", server, "--model", "nobody")
        assert result.exit_code == 1
        assert "404" in result.stderr

    @pytest.mark.parametrize("command", ["classify", "label", "health"])
    def test_nobody_there(self, write, command):
        """So is a service that isn't there."""
        url = f"http://127.0.0.1:{free_port()}"
        file = [] if command == "health" else [write("a.json", json.dumps(FIRST))]
        result = invoke(command, *file, "--url", url)
        assert isinstance(result.exception, SystemExit)
        assert result.exit_code == 1
        assert "Connection refused" in result.output

    def test_health(self, server):
        """`health` says that a ready service is ready."""
        result = invoke("health", "--url", server)
        assert (result.exit_code, result.stdout) == (0, "ready\n")
