"""The command `serve`: start, log, stop and refusals, as a process."""

import concurrent.futures
import json
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import httpx
import numpy as np
import pytest

from model.bundle import bundle
from service.client import Client
from tests.service.cli.commands import invoke
from tests.support.bundles import copy_bundle, random_frames
from tests.support.processes import (
    family,
    processes,
    run,
    serving,
    standing_still,
)
from tests.support.servers import ROOT, SECONDS, value, wait

FRAMES = random_frames(np.random.default_rng(0), 5)
FIRST = FRAMES.tolist()
KEY = "a key of the tests"


@pytest.fixture(scope="module")
def started(bundles, tmp_path_factory):
    """A ready service process, configured by variables and options."""
    variables = {
        "UNROLLED_BUNDLES": str(bundles),
        "UNROLLED_PORT": "1",  # the option overrides it
        "UNROLLED_DEFAULT_LABEL": "tags",
        "UNROLLED_LOG_LEVEL": "debug",
        "UNROLLED_STATE_KEY": KEY,
    }
    with serving(tmp_path_factory.mktemp("serve"), **variables) as process:
        wait(lambda: process.answers("/readyz"), "it is ready")
        yield process


def _limit_open_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))


class TestServe:
    @pytest.mark.slow
    def test_few_open_files(self, bundles, tmp_path):
        """If the system allows few open files, the connection limit is lower than the
        setting: idle connections are closed, and probes are answered."""
        options = ("--bundles", bundles / "walks", "--workers", 1)
        with (
            serving(tmp_path, *options, preexec_fn=_limit_open_files) as service,
            ExitStack() as stack,
        ):
            wait(lambda: service.answers("/readyz"), "it is ready")
            at = ("127.0.0.1", httpx.URL(service.url).port)
            for _ in range(60):
                stack.enter_context(socket.create_connection(at, SECONDS))
            assert all(service.answers("/livez") for _ in range(5))
            assert "the limit of open files allows" in service.output.read_text()

    @pytest.mark.slow
    def test_port_opens_first(self, bundles, tmp_path):
        """The port is open, and /livez answers, before the models are loaded."""
        folder = copy_bundle(bundles / "walks" / "1", tmp_path / "walks" / "1")
        with (folder / "saved_model.pb").open("ab") as file:
            file.truncate(bundle.MAX_BYTES - 2**20)  # its digest takes seconds
        with serving(tmp_path, "--bundles", tmp_path) as service:
            response = httpx.get(f"{service.url}/readyz")
            assert response.status_code == 503
            assert response.json()["reasons"] == ["loading the bundles"]
            assert service.answers("/livez")

    def test_settings(self, started, server):
        """Variables and options take effect, and the answers are right."""
        body = httpx.get(f"{started.url}/models").json()
        names = {model["name"]: model["default"] for model in body["models"]}
        assert names == {"both": False, "tags": True, "walks": True}
        assert {model["engine"] for model in body["models"]} == {"onnx"}
        with Client(started.url) as client, Client(server) as other:
            answers = [c.classify([FRAMES]).predictions[0] for c in (client, other)]
        probabilities = [answer.probabilities for answer in answers]
        np.testing.assert_allclose(*probabilities, atol=1e-5)

    def test_log(self, started):
        """If the output is no terminal, every line is a JSON record. The last one of the
        start has the address."""

        def messages():
            return [record["message"] for record in started.records()]

        last = f"serving on {started.url}"
        wait(lambda: last in messages(), "the lines are written")
        records, messages = started.records(), messages()
        assert messages.count("loaded") == 3
        assert messages.count("ready") == 1
        assert messages[0] == "starting"
        assert messages.count(last) == 1
        assert messages.index(last) > messages.index("ready")
        ready = records[messages.index("ready")]
        assert ready["models"] == ["both", "tags", "walks"]
        assert {record["level"] for record in records} <= {"debug", "info"}

    def test_client_commands(self, started, tmp_path):
        """As processes, `classify` and `label` print JSON lines; `-` is standard input."""
        file = tmp_path / "frames.json"
        file.write_text(json.dumps({"sequences": [FIRST, FIRST[:1]]}))
        result = run("classify", str(file), "--url", started.url)
        assert (result.returncode, result.stderr) == (0, "")
        predictions = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(predictions) == 2
        assert set(predictions[0]) >= {"label", "probability"}
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

    def test_stop(self, started):
        """On SIGTERM it refuses new requests, answers those under way, and ends with exit
        code 0; its key is not in its output. (The last test: it ends the process.)"""
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
            except httpx.TransportError:  # refused or reset
                return True
            return False

        before = total("unrolled_sequence_steps_count")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            # So that the requests are under way when it stops.
            with standing_still(started.process):
                requests = [pool.submit(ask, number) for number in range(4)]
                wait(
                    lambda: total("unrolled_sequence_steps_count") == before + 4,
                    "all are admitted",
                )
                assert total("unrolled_waiting_steps") == 4_000
                started.process.send_signal(signal.SIGTERM)
                wait(refuses, "it refuses new requests")
                assert not any(future.done() for future in requests)
            results = [future.result(SECONDS) for future in requests]
        assert [response.status_code for response in results] == [200] * 4
        assert started.process.wait(SECONDS) == 0
        text = started.output.read_text()
        assert "Traceback" not in text
        assert KEY not in text
        assert {r["level"] for r in started.records()} <= {"debug", "info"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [[signal.SIGTERM], [signal.SIGINT], [signal.SIGKILL], [signal.SIGTERM] * 2],
    ids=["sigterm", "sigint", "sigkill", "sigterm-twice"],
)
def test_no_process_is_left(bundles, tmp_path, signals):
    """However it ends, its workers and other child processes end with it."""
    options = ("--bundles", bundles / "walks", "--workers", 2)
    with serving(tmp_path, *options) as service:
        wait(lambda: service.answers("/readyz"), "it is ready")
        group = family(service.process)
        assert len(group) > 2
        for number in signals:
            service.process.send_signal(number)
        service.process.wait(SECONDS)
        wait(lambda: not group & processes().keys(), "none is left")
        assert "Traceback" not in service.output.read_text()


class TestRefusesToServe:
    def test_broken_bundle(self, bundles, tmp_path):
        """A changed file in a bundle is exit code 3, and one line that names the file."""
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

    @pytest.mark.slow
    def test_no_bundle(self, tmp_path, monkeypatch, caplog):
        """A folder without bundles is exit code 3, also with --skip-broken."""
        monkeypatch.setattr("service.telemetry.logs.setup", lambda *_: None)
        for skip in ("--no-skip-broken", "--skip-broken"):
            caplog.clear()
            result = invoke("serve", "--port", 0, "--bundles", tmp_path, skip)
            assert result.exit_code == 3
            assert f"{tmp_path}: no bundle found" in caplog.text

    def test_setting(self, monkeypatch):
        """A wrong setting is exit code 2, and one line that names it."""
        for name, text, message in (
            ("UNROLLED_PROT", "80", "UNROLLED_PROT: no such setting"),
            ("UNROLLED_MAX_BODY_BYTES", "0", "UNROLLED_MAX_BODY_BYTES"),
        ):
            with monkeypatch.context() as patch:
                patch.setenv(name, text)
                result = invoke("serve")
            assert (result.exit_code, result.stdout) == (2, "")
            (line,) = result.stderr.splitlines()
            assert message in line

    @pytest.mark.slow
    def test_too_few_open_files(self, bundles, monkeypatch):
        """A limit of open files with which the service can't start is exit code 2, and one
        line that says how many are needed."""
        monkeypatch.setattr("service.telemetry.logs.setup", lambda *_: None)
        monkeypatch.setattr(resource, "getrlimit", lambda _: (60, 60))
        result = invoke("serve", "--bundles", bundles / "walks", "--workers", 2)
        assert result.exit_code == 2
        assert "allows 60 open files, and the service needs 84" in result.stderr

    def test_port_in_use(self, bundles, monkeypatch, caplog):
        """A port in use is exit code 1, and one line that names it."""
        # In this process, so the log must stay that of the tests.
        monkeypatch.setattr("service.telemetry.logs.setup", lambda *_: None)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            result = invoke("serve", "--port", port, "--bundles", bundles / "walks")
        assert isinstance(result.exception, SystemExit)
        assert "address already in use" in caplog.text
        assert str(port) in caplog.text
        assert result.exit_code == 1


def test_light_imports():
    """Help and settings load neither TensorFlow nor another engine's library."""
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
    output, _, loaded = result.stdout.rpartition("LOADED")
    for part in ("Serve recurrent networks", "--max-body-bytes", "UNROLLED_PORT="):
        assert part in output
    heavy = {"tensorflow", "keras", "onnx", "onnxruntime", "matplotlib"}
    assert not heavy & set(loaded.split())
