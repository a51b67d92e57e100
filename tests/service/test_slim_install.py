"""The service where only what it needs is installed: no TensorFlow, no Keras, no
ONNX (only its runtime), no Matplotlib."""

import json
import subprocess
import sys

import numpy as np

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

asked = json.load(sys.stdin)
with running(Settings(port=0, bundles=sys.argv[1])) as made:
    told = {{"models": made.http.get("/models").json()["models"], "answers": []}}
    for path, body in asked:
        response = made.http.post(path, json=body)
        assert response.status_code == 200, response.text
        told["answers"].append(response.json())
told["loaded"] = [n for n in sys.modules if n.partition(".")[0] in {ABSENT!r}]
print(json.dumps(told))
"""


def test_serves(bundles):
    """It serves every bundle with the right answers, by ONNX Runtime, and imports
    nothing of what is not there."""
    rng = np.random.default_rng(5)
    tasks = {"walks": "classify", "tags": "label", "both": "label"}
    asked = {name: random_frames(rng, 20) for name in tasks}
    bodies = [
        (f"/{tasks[name]}", {"model": name, "sequences": [frames.tolist()]})
        for name, frames in asked.items()
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
    told = json.loads(result.stdout)
    assert told["loaded"] == []
    assert {model["engine"] for model in told["models"]} == {"onnx"}
    for (name, frames), answer in zip(asked.items(), told["answers"], strict=True):
        step = reload.saved_model(bundles / name / "1")
        size = {"walks": 6, "tags": 10, "both": 0}[name]
        lengths = np.array([len(frames)], np.int32)
        expected, _ = step(frames[None], lengths, np.zeros((1, size), np.float32))
        given = answer["predictions"][0]["probabilities"]
        np.testing.assert_allclose(given, expected[0], atol=1e-5)
