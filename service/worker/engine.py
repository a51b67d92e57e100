"""The interface of inference engines, and the choice of the one that serves a bundle."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.bundle.bundle import TOLERANCE, Bundle, BundleError
from model.bundle.metadata import Metadata
from service.settings import Settings

ROWS, STEPS, RUNS = 8, 32, 5  # of the calls that compare int8 with float32


class Engine(Protocol):
    """A loaded network. It belongs to one worker and need not be thread-safe."""

    name: str

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advance each row by its frames.

        Args:
            frames: [B, T, F] float32, zero past each length.
            lengths: [B] int32, 1 to T.
            state: [B, S] float32; zeros begin a sequence. S is 0 for a network
                that reads whole sequences.

        Returns:
            probabilities [B, C] after the last valid step (classify) or
            [B, T, C] (label), and the new state [B, S], float32.
        """
        ...


EngineFactory = Callable[[Bundle, Settings], Engine]
Engines = Mapping[str, EngineFactory]


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that reproduces a bundle's golden answers."""

    engine: Engine
    precision: str  # of its weights: float32 or int8
    reason: str  # why this engine was chosen


def _onnx(bundle: Bundle, settings: Settings) -> Engine:
    from service.worker.onnx_engine import OnnxEngine

    return OnnxEngine(bundle, settings.precision)


def _tensorflow(bundle: Bundle, settings: Settings) -> Engine:
    # Imported here so that nothing else of the service needs TensorFlow.
    from service.worker.tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine(bundle)


ENGINES: Engines = {"onnx": _onnx, "tensorflow": _tensorflow}


def load(
    bundle: Bundle, settings: Settings, engines: Engines = ENGINES
) -> LoadedEngine:
    """Load the engine that the settings name, or for `auto` the first one that
    reproduces the golden answers.

    The precision `auto` measures a bundle's int8 network beside the float32 one, and takes
    the faster; `int8` takes it where the bundle has one.

    Raises:
        BundleError: no engine does; with the reason of each.
    """
    auto = settings.engine == "auto"
    choice = "the fastest" if auto else "chosen by the setting"
    reasons: list[str] = []
    for name in engines if auto else [settings.engine]:
        has_int8 = name == "onnx" and bundle.metadata.int8 is not None
        precisions = ["int8"] if has_int8 and settings.precision != "float32" else []
        if auto or settings.precision == "auto" or not precisions:
            precisions.append("float32")
        loaded: list[LoadedEngine] = []
        for precision in precisions:
            engine = _try(name, engines[name], bundle, settings, precision)
            if isinstance(engine, str):
                reasons.append(engine)
                continue
            reason = (
                f"{choice}, golden answers within {_tolerance(bundle, precision):.0e}"
            )
            loaded.append(
                LoadedEngine(engine, precision, "; ".join([*reasons, reason]))
            )
            if settings.precision != "auto":
                break
        if loaded:
            return loaded[0] if len(loaded) == 1 else _faster(bundle.metadata, *loaded)
    raise BundleError(f"{bundle.folder}: {'; '.join(reasons)}")


def fixed_precision(settings: Settings, metadata: Metadata) -> Settings:
    """Return settings whose precision depends on the bundle alone, not on a measurement:
    int8 where it has int8 weights."""
    precision = settings.precision
    if precision == "auto":
        precision = "int8" if metadata.int8 is not None else "float32"
    return settings.model_copy(update={"precision": precision})


def _faster(
    metadata: Metadata, int8: LoadedEngine, float32: LoadedEngine
) -> LoadedEngine:
    """Return the engine that is faster on sequences of random numbers."""
    random = np.random.default_rng(0)
    steps = STEPS * metadata.stack
    shape = (ROWS, steps, metadata.input.features)
    deviations = 1 / np.array(metadata.normalisation.scale, np.float32)
    frames = random.standard_normal(shape, np.float32) * deviations
    frames += np.array(metadata.normalisation.mean, np.float32)
    lengths = np.full(ROWS, steps, np.int32)
    state = np.zeros((ROWS, metadata.state_size), np.float32)
    seconds = {"int8": float("inf"), "float32": float("inf")}
    for _ in range(RUNS):
        for loaded in (int8, float32):
            started = time.perf_counter()
            loaded.engine.step(frames, lengths, state)
            duration = time.perf_counter() - started
            seconds[loaded.precision] = min(seconds[loaded.precision], duration)
    ratio = seconds["int8"] / seconds["float32"]
    chosen = int8 if ratio < 1 else float32
    reason = f"{chosen.reason}; int8 takes {ratio:.2f} of the time of float32"
    return LoadedEngine(chosen.engine, chosen.precision, reason)


def _tolerance(bundle: Bundle, precision: str) -> float:
    change = bundle.metadata.int8
    return change.bound if precision == "int8" and change else TOLERANCE


def _try(
    name: str,
    factory: EngineFactory,
    bundle: Bundle,
    settings: Settings,
    precision: str,
) -> Engine | str:
    """Return an engine whose golden answers are within the tolerance, or the reason
    why there is none."""
    try:
        engine = factory(bundle, settings.model_copy(update={"precision": precision}))
        golden = bundle.golden(precision=precision)
        difference = golden.difference(engine.step, bundle.metadata.sums)
    except ModuleNotFoundError as error:
        return f"{name}: {error.name} is not installed"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    if difference <= _tolerance(bundle, precision):
        return engine
    return f"{engine.name} ({precision}) misses the golden answers by {difference:.1e}"
