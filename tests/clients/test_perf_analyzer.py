"""Triton's load generator, unmodified, against the running service; and what it reads
unchecked of a model."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

from service.pool import spawn
from service.settings import Settings
from service.worker import engine as engines
from tests.support.servers import SECONDS, running

REQUESTS = 60
FEATURES = 3


def find_binary() -> Path | None:
    """The generator itself: the script beside it ends with 0 however it went."""
    found = importlib.util.find_spec("perf_analyzer")
    if found is None or found.origin is None:
        return None
    binary = Path(found.origin).parent / "bin" / "perf_analyzer"
    return binary if binary.exists() else None


BINARY = find_binary()
needs_binary = pytest.mark.skipif(
    BINARY is None, reason="perf-analyzer is not installed: Linux on x86_64 only"
)


@pytest.fixture
def http(running_server):
    return running_server.http


@pytest.fixture
def drive(server, tmp_path):
    """Model, lengths of its sequences, flags -> how the generator ended."""

    def run(name, lengths, *flags, told=False, url=server):
        path = tmp_path / "frames.json"
        path.write_text(json.dumps({"data": [row(n, told=told) for n in lengths]}))
        command = [BINARY, "-i", "http", "-u", url.removeprefix("http://")]
        command += ["-m", name, "--input-data", path, "--concurrency-range", "2"]
        command += ["--request-count", str(REQUESTS), *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)

    return run


def row(length, *, told):
    """A sequence as the generator reads it."""
    content = [0.5] * FEATURES * length
    made = {"frames": {"content": content, "shape": [length, FEATURES]}}
    if told:
        made["lengths"] = {"content": [length], "shape": [1]}
    return made


def count(report, name):
    """A number of the report's last part, which is the server's own statistics."""
    _, _, server = report.partition("Server:")
    found = re.search(rf"{name}: (\d+)", server)
    assert found, report
    return int(found[1])


def assert_told(report, batch):
    """The report has the service's account of the requests (of all but perhaps the
    first: it looks at the beginning while it sends them already)."""
    requests = count(report, "Successful request count")
    assert 0 < requests <= REQUESTS
    assert count(report, "Inference count") == requests * batch
    assert count(report, "Execution count") > 0
    for part in ("queue", "compute input", "compute infer", "compute output"):
        assert re.search(rf"{part} \d+ usec", report), part


def statistics(http, name):
    (told,) = http.get(f"/v2/models/{name}/stats").json()["model_stats"]
    return told


@needs_binary
class TestDriven:
    @pytest.mark.parametrize(
        ("name", "lengths", "batch", "told"),
        [
            pytest.param("walks", (1, 5, 40), 1, False, id="walks"),
            pytest.param("tags", (1, 5, 40), 1, False, id="tags"),
            pytest.param("both", (1, 5, 40), 1, False, id="both"),
            pytest.param("walks", (3, 8), 1, True, id="walks-with-lengths"),
            pytest.param("walks", (6, 6), 2, False, id="walks-by-two"),
            pytest.param("tags", (6, 6), 2, True, id="tags-by-two-with-lengths"),
        ],
    )
    def test_run(self, drive, http, name, lengths, batch, told):
        """It runs without an error, and its report has the service's own account of
        the requests."""
        before = statistics(http, name)
        ended = drive(name, lengths, "-b", str(batch), told=told)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        report = ended.stdout
        assert f"Batch size: {batch}" in report
        assert_told(report, batch)
        after = statistics(http, name)
        made = after["inference_count"] - before["inference_count"]
        assert made == REQUESTS * batch

    def test_sequences(self, drive, bundles):
        """It sends sequences under ids where a model was loaded to tell of them."""
        settings = Settings(port=0, bundles=bundles, workers=1, admin=True)
        config = {"parameters": {"config": '{"sequence_batching": {}}'}}
        with running(settings, start=spawn.thread(engines.ENGINES)) as made:
            loaded = made.http.post("/v2/repository/models/walks/load", json=config)
            assert loaded.status_code == 200, loaded.text
            flags = "--sequence-length", "5"
            ended = drive("walks", (1, 5, 4), *flags, url=made.url)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert re.search(r"Sequence count: [1-9]", ended.stdout)
            assert_told(ended.stdout, 1)
            assert statistics(made.http, "walks")["inference_count"] == REQUESTS

    def test_refused(self, drive):
        """A model that there is not ends it with the service's words."""
        ended = drive("nothing", (4,))
        assert ended.returncode != 0
        assert "Request for unknown model" in ended.stdout + ended.stderr


# Each member, and its type in JSON.
TEXT, NUMBER, FLAG, LIST, OBJECT = str, int, bool, list, dict
CONFIG = {
    "name": TEXT,
    "platform": TEXT,
    "backend": TEXT,
    "version_policy": OBJECT,
    "max_batch_size": NUMBER,
    "input": LIST,
    "output": LIST,
    "batch_input": LIST,
    "batch_output": LIST,
    "optimization": OBJECT,
    "dynamic_batching": OBJECT,
    "instance_group": LIST,
    "default_model_filename": TEXT,
    "parameters": OBJECT,
    "model_warmup": LIST,
}
CONFIG_INPUT = {
    "name": TEXT,
    "data_type": TEXT,
    "format": TEXT,
    "dims": LIST,
    "is_shape_tensor": FLAG,
    "allow_ragged_batch": FLAG,
    "optional": FLAG,
}
CONFIG_OUTPUT = {
    "name": TEXT,
    "data_type": TEXT,
    "dims": LIST,
    "label_filename": TEXT,
    "is_shape_tensor": FLAG,
}
STATISTICS = {
    "name": TEXT,
    "version": TEXT,
    "last_inference": NUMBER,
    "inference_count": NUMBER,
    "execution_count": NUMBER,
    "inference_stats": OBJECT,
    "batch_stats": LIST,
    "memory_usage": LIST,
    "response_stats": OBJECT,
}
PARTS = ("compute_input", "compute_infer", "compute_output")
REQUEST = ("success", "fail", "queue", *PARTS, "cache_hit", "cache_miss")
DURATION = {"count": NUMBER, "ns": NUMBER}


def assert_types(given, types):
    """Each member is there and of its type: a flag is no number."""
    assert {key: type(given.get(key)) for key in types} == types


@pytest.mark.parametrize("path", ["", "/versions/1"])
@pytest.mark.parametrize("name", ["walks", "tags", "both"])
class TestMembers:
    def test_config(self, http, name, path):
        """A configuration has each member that is read of it, of its type."""
        config = http.get(f"/v2/models/{name}{path}/config").json()
        assert_types(config, CONFIG)
        for one in config["input"]:
            assert_types(one, CONFIG_INPUT)
        for one in config["output"]:
            assert_types(one, CONFIG_OUTPUT)
        for one in config["input"] + config["output"]:
            assert {type(size) for size in one["dims"]} == {int}
        assert_types(
            config["dynamic_batching"],
            {"preferred_batch_size": LIST, "max_queue_delay_microseconds": NUMBER},
        )
        for one in config["parameters"].values():
            assert_types(one, {"string_value": TEXT})
        # Either of these would have it drive the model in another way.
        assert not config.keys() & {"sequence_batching", "ensemble_scheduling"}

    def test_statistics(self, http, name, path):
        """And so have a model's statistics, alone and among those of all."""
        frames = {"name": "frames", "datatype": "FP32", "shape": [2, 1, 3]}
        body = {"inputs": [frames | {"data": [0] * 6}]}
        assert http.post(f"/v2/models/{name}/infer", json=body).status_code == 200
        (alone,) = http.get(f"/v2/models/{name}{path}/stats").json()["model_stats"]
        among = http.get("/v2/models/stats").json()["model_stats"]
        assert {one["name"] for one in among} == {"walks", "tags", "both"}
        for one in (alone, *among):
            assert_types(one, STATISTICS)
            assert_types(one["inference_stats"], dict.fromkeys(REQUEST, OBJECT))
            for part in REQUEST:
                assert_types(one["inference_stats"][part], DURATION)
            for batch in one["batch_stats"]:
                assert_types(batch, {"batch_size": NUMBER})
                for part in PARTS:
                    assert_types(batch[part], DURATION)
        assert (alone["name"], alone["version"]) == (name, "1")
        assert alone["batch_stats"]
        rows = [
            b["batch_size"] * b["compute_infer"]["count"] for b in alone["batch_stats"]
        ]
        assert sum(rows) >= 2
        calls = [b["compute_infer"]["count"] for b in alone["batch_stats"]]
        assert sum(calls) == alone["execution_count"]
