"""A model's description in the Open Inference Protocol v2, with Triton's extensions.

The fields are exactly Triton's: its load generator (`perf_analyzer`) requires them.
"""

from typing import Any, NamedTuple

from service.codecs.open_inference import PROBABILITIES
from service.codecs.open_inference_tensors import FRAMES, LENGTHS
from service.codecs.text_tensors import TEXT
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
    """`GET /v2/models/NAME`; a dimension of -1 may have any size."""
    classes = len(model.metadata.classes)
    steps = [-1] if model.metadata.task == "label" else []
    return {
        "name": model.metadata.name,
        "versions": versions,
        "platform": platform(model),
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": [-1, *tensor.dims],
            }
            for tensor in _inputs(model)
        ],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, *steps, classes]}
        ],
    }


class Tensor(NamedTuple):
    """An input."""

    name: str
    datatype: str
    dims: list[int]  # without the batch


def _inputs(model: Model) -> list[Tensor]:
    """The inputs of a model."""
    lengths = Tensor(LENGTHS, "INT32", [1])
    if model.vocabulary is not None:
        return [Tensor(TEXT, "BYTES", [1])]
    if model.columns is not None:
        return [
            *(
                Tensor(name, "FP32" if kind == "number" else "BYTES", [-1])
                for name, kind in model.columns.items()
            ),
            *([lengths] if LENGTHS not in model.columns else ()),
        ]
    return [Tensor(FRAMES, "FP32", [-1, model.metadata.input.features]), lengths]


def _input(tensor: Tensor) -> dict[str, Any]:
    """A ModelInput in JSON."""
    optional = tensor.name == LENGTHS
    types = {"BYTES": "STRING"}
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{types.get(tensor.datatype, tensor.datatype)}",
        "format": "FORMAT_NONE",
        "dims": tensor.dims,
        # One number for each row; [batch] is allowed, too.
        **({"reshape": {"shape": []}} if optional else {}),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": optional,
    }


def config(model: Model, max_batch: int, newest: int) -> dict[str, Any]:
    """`GET /v2/models/NAME/config`: a ModelConfig (`model_config.proto`) in JSON, without
    the fields of `BatchingModes`.

    Args:
        max_batch: sequences in a request.
        newest: the number of newest versions that are served; 0: all.
    """
    about = model.metadata
    steps = [-1] if about.task == "label" else []
    policy = {"latest": {"num_versions": newest}} if newest else {"all": {}}
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
        "input": [_input(tensor) for tensor in _inputs(model)],
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
    """The kind of Triton's batching that each model's configuration announces.

    Every model answers single requests, and every streamable one also sequences.
    """

    def __init__(self, idle_seconds: float):
        self._idle = int(1e6 * idle_seconds)
        self._sequences: set[str] = set()

    def set(self, name: str, *, sequences: bool) -> None:
        """Announce sequence batching, or dynamic batching of single requests."""
        (self._sequences.add if sequences else self._sequences.discard)(name)

    def config(self, name: str) -> dict[str, Any]:
        """The field of a ModelConfig."""
        if name not in self._sequences:
            delays = {"preferred_batch_size": [], "max_queue_delay_microseconds": 0}
            return {"dynamic_batching": delays}
        direct = {"max_queue_delay_microseconds": 0, "minimum_slot_utilization": 0.0}
        batching = {"max_sequence_idle_microseconds": self._idle, "direct": direct}
        return {"sequence_batching": batching | {"control_input": [], "state": []}}


def platform(model: Model) -> str:
    """Triton's name of the model's engine."""
    return PLATFORMS.get(model.loaded.engine, model.loaded.engine)


def index(catalog: Catalog, *, ready: bool) -> list[dict[str, str]]:
    """`POST /v2/repository/index`.

    Args:
        ready: only the models that can answer.
    """
    models = [
        {"name": name, "version": version, "state": "READY", "reason": ""}
        for name, versions in catalog.versions.items()
        for version in versions
    ]
    if ready:
        return models
    missing = catalog.broken | dict.fromkeys(catalog.unloaded, "unloaded")
    for key, reason in missing.items():
        name, _, version = key.partition("@")
        if "/" not in name:  # not an error of its labels
            models.append(
                {
                    "name": name,
                    "version": version,
                    "state": "UNAVAILABLE",
                    "reason": reason,
                }
            )
    return models
