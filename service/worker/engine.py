"""The interface of inference engines, and the choice of the one that serves a bundle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.bundle.bundle import TOLERANCE, Bundle, BundleError
from service.settings import Settings


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
    reproduces the golden answers. Int8 weights are used if the settings ask for them
    and the bundle has them.

    Raises:
        BundleError: no engine does; with the reason of each.
    """
    auto = settings.engine == "auto"
    choice = "the fastest" if auto else "chosen by the setting"
    reasons: list[str] = []
    for name in engines if auto else [settings.engine]:
        variants = []
        wants_int8 = name == "onnx" and settings.precision == "int8"
        if wants_int8 and bundle.metadata.int8:
            variants.append(("int8", bundle.metadata.int8.bound))
        if auto or not variants:
            variants.append(("float32", TOLERANCE))
        for precision, tolerance in variants:
            variant = settings.model_copy(update={"precision": precision})
            engine = _try(name, engines[name], bundle, variant, tolerance)
            if not isinstance(engine, str):
                reasons.append(f"{choice}, golden answers within {tolerance:.0e}")
                return LoadedEngine(engine, precision, "; ".join(reasons))
            reasons.append(engine)
    raise BundleError(f"{bundle.folder}: {'; '.join(reasons)}")


def _try(
    name: str,
    factory: EngineFactory,
    bundle: Bundle,
    settings: Settings,
    tolerance: float,
) -> Engine | str:
    """Return an engine whose golden answers are within the tolerance, or the reason
    why there is none."""
    try:
        engine = factory(bundle, settings)
        difference = bundle.golden().difference(engine.step, bundle.metadata.sums)
    except ModuleNotFoundError as error:
        return f"{name}: {error.name} is not installed"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    if difference <= tolerance:
        return engine
    return f"{engine.name} misses the golden answers by {difference:.1e}"
