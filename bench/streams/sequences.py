"""What streams send, and the answers that are right.

A few sequences are made of the bundle's own golden frames, one after another from a
place of their own; each stream sends one of them, a frame a message. The answers
come from ONNX Runtime alone, each sequence in one call.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import orjson

from model.bundle import bundle

DIFFERENT = 16
MASK = bytes(4)  # of RFC 6455: masked with zeros, so that bytes stay as they are


@dataclass(frozen=True, slots=True)
class Sequences:
    """By sequence: its messages as bytes on the wire, and the right probabilities."""

    messages: list[list[bytes]]
    answers: np.ndarray  # [sequences, steps, C]


def make(folder: Path, steps: int) -> Sequences:
    """Sequences of so many steps for the bundle in a folder."""
    found = bundle.read(folder)
    golden = found.golden()
    rows = zip(golden.frames, golden.lengths, strict=True)
    pool = np.concatenate([frames[:length] for frames, length in rows]).round(3)
    places = np.arange(DIFFERENT)[:, None] * 7 + np.arange(steps)
    frames = np.ascontiguousarray(pool[places % len(pool)], np.float32)
    session = onnxruntime.InferenceSession(str(folder / bundle.NETWORK))
    label = found.metadata.task == "label"
    answers = _answers(session, frames, found.metadata.state_size, label)
    messages = [[_message(frame) for frame in sequence] for sequence in frames]
    return Sequences(messages, answers)


def _answers(session, frames: np.ndarray, width: int, label: bool) -> np.ndarray:
    """[sequences, steps, C]: of each step, also where only the last is answered."""
    state = np.zeros((len(frames), width), np.float32)
    rows = []
    for step in range(frames.shape[1]):
        inputs = {
            "frames": frames[:, step : step + 1],
            "lengths": np.ones(len(frames), np.int32),
            "state": state,
        }
        probabilities, state = session.run(None, inputs)
        rows.append(probabilities[:, 0] if label else probabilities)
    return np.stack(rows, 1)


def _message(frame: np.ndarray) -> bytes:
    """A masked text frame of RFC 6455."""
    numbers = [int(n) if n == int(n) else n for n in frame.round(3).tolist()]
    body = orjson.dumps({"frames": [numbers]})
    if len(body) < 126:
        return bytes([0x81, 0x80 | len(body)]) + MASK + body
    assert len(body) < 65_536
    return bytes([0x81, 0x80 | 126]) + len(body).to_bytes(2, "big") + MASK + body
