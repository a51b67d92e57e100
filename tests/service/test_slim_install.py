"""The service in a slim install: without TensorFlow, Keras, ONNX (except for ONNX
Runtime) and Matplotlib."""

import json
import subprocess
import sys

import numpy as np
import pytest

from model.network import reload
from tests.support.bundles import random_frames
from tests.support.servers import ROOT, SECONDS

ABSENT = ("tensorflow", "keras", "onnx", "matplotlib", "PIL", "pyarrow", "tensorboard")
SCRIPT = f"""
import sys, json

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(ROOT)!r})

from tests.support.servers import running
from service.settings import Settings

requests = json.load(sys.stdin)
with running(Settings(port=0, bundles=sys.argv[1])) as server:
    output = {{"models": server.http.get("/models").json()["models"], "answers": []}}
    for path, body in requests:
        response = server.http.post(path, json=body)
        assert response.status_code == 200, response.text
        output["answers"].append(response.json())
output["loaded"] = [n for n in sys.modules if n.partition(".")[0] in {ABSENT!r}]
print(json.dumps(output))
"""


@pytest.mark.slow
def test_serves(bundles):
    """It serves every bundle with ONNX Runtime, with the right answers, and imports no
    package that is missing."""
    rng = np.random.default_rng(5)
    tasks = {"walks": "classify", "tags": "label", "both": "label"}
    sequences = {name: random_frames(rng, 20) for name in tasks}
    bodies = [
        (f"/{tasks[name]}", {"model": name, "sequences": [frames.tolist()]})
        for name, frames in sequences.items()
    ]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundles)],
        cwd=ROOT,
        input=json.dumps(bodies),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout)
    assert output["loaded"] == []
    assert {model["engine"] for model in output["models"]} == {"onnx"}
    for (name, frames), answer in zip(
        sequences.items(), output["answers"], strict=True
    ):
        step = reload.saved_model(bundles / name / "1")
        size = {"walks": 20, "tags": 10, "both": 0}[name]
        lengths = np.array([len(frames)], np.int32)
        expected, _ = step(frames[None], lengths, np.zeros((1, size), np.float32))
        (prediction,) = answer["predictions"]
        np.testing.assert_allclose(prediction["probabilities"], expected[0], atol=1e-5)
