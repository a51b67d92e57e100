"""A model as the Open Inference Protocol v2 and Triton describe it.

Field by field as Triton's server writes it, which its load generator
(`perf_analyzer`) reads unchecked.
"""

from typing import Any

from service.codecs.open_inference import PROBABILITIES
from service.codecs.tensors import FRAMES, LENGTHS
from service.registry.catalog import Catalog, Model

PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorflow": "tensorflow_savedmodel"}
EXTENSIONS = (
    "binary_tensor_data",
    "parameters",
    "classification",
    "sequence",
    "sequence(string_id)",
    "model_configuration",
    "statistics",
)
ADMIN_EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")


def metadata(model: Model, versions: list[str]) -> dict[str, Any]:
    """`GET /v2/models/NAME`; -1 is a size that a request chooses."""
    features, classes = model.metadata.input.features, len(model.metadata.classes)
    steps = [-1] if model.metadata.task == "label" else []
    return {
        "name": model.metadata.name,
        "versions": versions,
        "platform": platform(model),
        "inputs": [
            {"name": FRAMES, "datatype": "FP32", "shape": [-1, -1, features]},
            {"name": LENGTHS, "datatype": "INT32", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, *steps, classes]}
        ],
    }


def config(model: Model, max_batch: int, keep: int) -> dict[str, Any]:
    """`GET /v2/models/NAME/config`: a ModelConfig (`model_config.proto`) in JSON, but
    for `BatchingModes`.

    Args:
        max_batch: sequences in a request.
        keep: versions that are served; 0: all.
    """
    about = model.metadata
    steps = [-1] if about.task == "label" else []
    policy = {"latest": {"num_versions": keep}} if keep else {"all": {}}
    parameters = {
        "task": about.task,
        "classes": "\n".join(about.classes),
        "cell": about.cell,
        "stateful": str(about.state_size > 0).lower(),
    }
    return {
        "name": about.name,
        "platform": platform(model),
        "backend": platform(model).partition("_")[0],
        "version_policy": policy,
        "max_batch_size": max_batch,
        "input": [
            {
                "name": FRAMES,
                "data_type": "TYPE_FP32",
                "format": "FORMAT_NONE",
                "dims": [-1, about.input.features],
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
            },
            {
                "name": LENGTHS,
                "data_type": "TYPE_INT32",
                "format": "FORMAT_NONE",
                "dims": [1],
                "reshape": {"shape": []},  # a number a row; [batch] is taken too
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": True,
            },
        ],
        "output": [
            {
                "name": PROBABILITIES,
                "data_type": "TYPE_FP32",
                "dims": [*steps, len(about.classes)],
                "label_filename": "",
                "is_shape_tensor": False,
            }
        ],
        "batch_input": [],
        "batch_output": [],
        "optimization": {},
        "instance_group": [],
        "default_model_filename": "",
        "parameters": {k: {"string_value": text} for k, text in parameters.items()},
        "model_warmup": [],
    }


class BatchingModes:
    """Which of Triton's two kinds of batching each model tells of. Every model answers
    single requests, and every one that can be stepped sequences under an id."""

    def __init__(self, idle_seconds: float):
        self._idle = int(1e6 * idle_seconds)
        self._sequences: set[str] = set()

    def tell(self, name: str, *, sequences: bool) -> None:
        """From now on a model tells of sequences, or of single requests."""
        (self._sequences.add if sequences else self._sequences.discard)(name)

    def of(self, name: str) -> dict[str, Any]:
        """The member of a ModelConfig."""
        if name not in self._sequences:
            delays = {"preferred_batch_size": [], "max_queue_delay_microseconds": 0}
            return {"dynamic_batching": delays}
        direct = {"max_queue_delay_microseconds": 0, "minimum_slot_utilization": 0.0}
        batching = {"max_sequence_idle_microseconds": self._idle, "direct": direct}
        return {"sequence_batching": batching | {"control_input": [], "state": []}}


def platform(model: Model) -> str:
    """Of the engine, as Triton calls it."""
    return PLATFORMS.get(model.loaded.engine, model.loaded.engine)


def index(catalog: Catalog, *, ready: bool) -> list[dict[str, str]]:
    """`POST /v2/repository/index`.

    Args:
        ready: only what can be asked.
    """
    found = [
        {"name": name, "version": version, "state": "READY", "reason": ""}
        for name, versions in catalog.versions.items()
        for version in versions
    ]
    if ready:
        return found
    missing = catalog.broken | dict.fromkeys(catalog.unloaded, "unloaded")
    for key, reason in missing.items():
        name, _, version = key.partition("@")
        if "/" not in name:  # else its labels
            told = {"name": name, "version": version, "state": "UNAVAILABLE"}
            found.append(told | {"reason": reason})
    return found
