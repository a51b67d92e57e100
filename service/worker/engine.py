"""What computes: one method, whatever the library behind it, and which one serves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.bundle.bundle import TOLERANCE, Bundle, BundleError
from service.settings import Settings


class Engine(Protocol):
    """A loaded network. Not shared: one worker owns it."""

    name: str

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advance each row by its frames.

        Args:
            frames: [B, T, F] float32, zero past each length.
            lengths: [B] int32, 1 to T.
            state: [B, S] float32; zeros begin a sequence. S is 0 for a network
                that needs its sequences whole.

        Returns:
            probabilities [B, C] after the last valid step (classify) or
            [B, T, C] (label), and the new state [B, S], float32.
        """
        ...


Engines = Mapping[str, Callable[[Bundle, Settings], Engine]]


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that gives a bundle's golden answers."""

    engine: Engine
    precision: str  # of its weights: float32 or int8
    reason: str  # why this one


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
    """The engine that the settings name, or the first that gives the golden answers:
    with int8 weights where they are asked for and there, else exactly.

    Raises:
        BundleError: none does; with the reason of each.
    """
    free = settings.engine == "auto"
    why = "the fastest" if free else "chosen by the setting"
    reasons: list[str] = []
    for name in engines if free else [settings.engine]:
        int8 = name == "onnx" and settings.precision == "int8" and bundle.metadata.int8
        if int8:
            told = _try(name, engines[name], bundle, settings, int8.bound)
            if not isinstance(told, str):
                right = f"golden answers within {int8.bound:.0e}"
                return LoadedEngine(told, "int8", f"{why}, {right}")
            reasons.append(told)
            if not free:
                break
        exact = settings.model_copy(update={"precision": "float32"})
        told = _try(name, engines[name], bundle, exact, TOLERANCE)
        if not isinstance(told, str):
            right = f"golden answers within {TOLERANCE:.0e}"
            return LoadedEngine(
                told, "float32", "; ".join([*reasons, f"{why}, {right}"])
            )
        reasons.append(told)
    raise BundleError(f"{bundle.folder}: {'; '.join(reasons)}")


def _try(
    name: str,
    make: Callable[[Bundle, Settings], Engine],
    bundle: Bundle,
    settings: Settings,
    allowed: float,
) -> Engine | str:
    """An engine within what is allowed, or why it isn't."""
    try:
        engine = make(bundle, settings)
        difference = bundle.golden().difference(engine.step)
    except ModuleNotFoundError as error:
        return f"{name}: {error.name} is not installed"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    if difference <= allowed:
        return engine
    return f"{engine.name} misses the golden answers by {difference:.1e}"
