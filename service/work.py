"""A request's sequences while they wait for the engine, and their answers."""

import contextlib
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np

from . import errors


@dataclass(frozen=True, slots=True)
class Answer:
    """One sequence's answer, cut to its length."""

    probabilities: np.ndarray  # [C] (classify) or [T, C] (label)
    state: np.ndarray  # [S]


class Request:
    """One future for the answers of all sequences, or for the first failure."""

    def __init__(self, sequences: int):
        self.future: Future[list[Answer]] = Future()
        self.answers: dict[int, Answer] = {}
        self.sequences = sequences


@dataclass(slots=True, eq=False)
class Work:
    """One sequence."""

    request: Request
    place: int  # among the request's sequences
    frames: np.ndarray  # [T, F]
    counted: bool = False
    since: float = field(default_factory=time.perf_counter)

    @property
    def unwanted(self) -> bool:
        """Its caller has gone, or has been told of a failure."""
        return self.request.future.done()

    def finish(self, answer: Answer) -> None:
        request = self.request
        request.answers[self.place] = answer
        if len(request.answers) == request.sequences:
            places = range(request.sequences)
            # A caller may go at any time: the future is then cancelled already.
            with contextlib.suppress(InvalidStateError):
                request.future.set_result([request.answers[p] for p in places])

    def fail(self, error: Exception) -> None:
        """Tell the caller that something went wrong, and the log what."""
        failure = errors.InternalError("the network could not compute an answer")
        failure.__cause__ = error
        self.refuse(failure)

    def refuse(self, failure: errors.ServiceError) -> None:
        """Tell the caller."""
        with contextlib.suppress(InvalidStateError):
            self.request.future.set_exception(failure)
