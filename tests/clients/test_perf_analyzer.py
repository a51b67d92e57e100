"""Triton's load generator, unmodified, against the running service; and the fields that it
reads unchecked."""

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
    """The generator itself: its script's exit code is always 0."""
    spec = importlib.util.find_spec("perf_analyzer")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "perf_analyzer"
    return binary if binary.exists() else None


BINARY = find_binary()
needs_binary = pytest.mark.skipif(
    BINARY is None, reason="perf-analyzer is not installed: Linux on x86_64 only"
)


@pytest.fixture
def drive(server, tmp_path):
    """Runs the generator on a model, with sequences of these lengths."""

    def run(name, lengths, *flags, send_lengths=False, url=server):
        path = tmp_path / "frames.json"
        rows = [row(n, send_lengths=send_lengths) for n in lengths]
        path.write_text(json.dumps({"data": rows}))
        command = [BINARY, "-i", "http", "-u", url.removeprefix("http://")]
        command += ["-m", name, "--input-data", path, "--concurrency-range", "2"]
        command += ["--request-count", str(REQUESTS), *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)

    return run


def row(length, *, send_lengths):
    """A sequence as the generator reads it."""
    content = [0.5] * FEATURES * length
    result = {"frames": {"content": content, "shape": [length, FEATURES]}}
    if send_lengths:
        result["lengths"] = {"content": [length], "shape": [1]}
    return result


def count(report, name):
    """A number of the report's last part, which is the server's own statistics."""
    _, _, server = report.partition("Server:")
    match = re.search(rf"{name}: (\d+)", server)
    assert match, report
    return int(match[1])


def assert_reported(report, batch):
    """Check the server's statistics in the report (without the first request perhaps:
    the generator reads them while it already sends)."""
    requests = count(report, "Successful request count")
    assert 0 < requests <= REQUESTS
    assert count(report, "Inference count") == requests * batch
    assert count(report, "Execution count") > 0
    for part in ("queue", "compute input", "compute infer", "compute output"):
        assert re.search(rf"{part} \d+ usec", report), part


def statistics(http, name):
    (model,) = http.get(f"/v2/models/{name}/stats").json()["model_stats"]
    return model


@needs_binary
@pytest.mark.slow
class TestDriven:
    @pytest.mark.parametrize(
        ("name", "lengths", "batch", "send_lengths"),
        [
            ("walks", (1, 5, 40), 1, False),
            ("both", (1, 5, 40), 1, False),
            ("walks", (3, 8), 1, True),
            ("tags", (6, 6), 2, True),
        ],
    )
    def test_run(self, drive, http, name, lengths, batch, send_lengths):
        """It runs without an error, and reports the server's statistics."""
        before = statistics(http, name)
        result = drive(name, lengths, "-b", str(batch), send_lengths=send_lengths)
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"Batch size: {batch}" in result.stdout
        assert_reported(result.stdout, batch)
        after = statistics(http, name)
        sequences = after["inference_count"] - before["inference_count"]
        assert sequences == REQUESTS * batch

    def test_sequences(self, drive, bundles):
        """It sends sequences with ids to a model that announces sequence batching."""
        settings = Settings(port=0, bundles=bundles, workers=1, admin=True)
        config = {"parameters": {"config": '{"sequence_batching": {}}'}}
        with running(settings, start=spawn.thread(engines.ENGINES)) as service:
            loaded = service.http.post("/v2/repository/models/walks/load", json=config)
            assert loaded.status_code == 200, loaded.text
            flags = "--sequence-length", "5"
            result = drive("walks", (1, 5, 4), *flags, url=service.url)
            assert result.returncode == 0, result.stdout + result.stderr
            assert re.search(r"Sequence count: [1-9]", result.stdout)
            assert_reported(result.stdout, 1)
            assert statistics(service.http, "walks")["inference_count"] == REQUESTS

    def test_refused(self, drive):
        """With an unknown model it shows the service's error."""
        result = drive("nothing", (4,))
        assert result.returncode != 0
        assert "Request for unknown model" in result.stdout + result.stderr


# Fields, and their types in JSON.
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


def assert_types(value, types):
    """Check that each field exists and has exactly its type: a flag is not a number."""
    assert {key: type(value.get(key)) for key in types} == types


class TestMembers:
    def test_config(self, http):
        """A configuration has each field that the generator reads."""
        for path in ("walks", "walks/versions/1", "tags", "both"):
            config = http.get(f"/v2/models/{path}/config").json()
            assert_types(config, CONFIG)
            for tensor in config["input"]:
                assert_types(tensor, CONFIG_INPUT)
            for tensor in config["output"]:
                assert_types(tensor, CONFIG_OUTPUT)
            for tensor in config["input"] + config["output"]:
                assert {type(size) for size in tensor["dims"]} == {int}
            assert_types(
                config["dynamic_batching"],
                {"preferred_batch_size": LIST, "max_queue_delay_microseconds": NUMBER},
            )
            for parameter in config["parameters"].values():
                assert_types(parameter, {"string_value": TEXT})
            # With one of these the generator would drive the model differently.
            assert not config.keys() & {"sequence_batching", "ensemble_scheduling"}

    def test_statistics(self, http):
        """So have a model's statistics, alone and among those of all."""
        for name, path in (("walks", ""), ("walks", "/versions/1"), ("tags", "")):
            frames = {"name": "frames", "datatype": "FP32", "shape": [2, 1, 3]}
            body = {"inputs": [frames | {"data": [0] * 6}]}
            assert http.post(f"/v2/models/{name}/infer", json=body).status_code == 200
            (model,) = http.get(f"/v2/models/{name}{path}/stats").json()["model_stats"]
            models = http.get("/v2/models/stats").json()["model_stats"]
            assert {m["name"] for m in models} == {"walks", "tags", "both"}
            for statistics in (model, *models):
                assert_types(statistics, STATISTICS)
                durations = statistics["inference_stats"]
                for part in REQUEST:
                    assert_types(durations[part], DURATION)
                for batch in statistics["batch_stats"]:
                    assert_types(batch, {"batch_size": NUMBER})
                    for part in PARTS:
                        assert_types(batch[part], DURATION)
            assert (model["name"], model["version"]) == (name, "1")
            counts = [
                (batch["batch_size"], batch["compute_infer"]["count"])
                for batch in model["batch_stats"]
            ]
            assert sum(size * count for size, count in counts) >= 2
            assert sum(count for _, count in counts) == model["execution_count"]
