"""A call of `classify` or `label`, sent as one request, or as several if it is large.

The first part is answered before the others are sent, because its answer names the
version of the model: the others ask for exactly that version. If that version leaves the
service meanwhile, the call starts again. Several parts are on their way at a time, since
the service computes them together.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from service.client.errors import InvalidAnswer, RequestError
from service.client.models import Limits
from service.client.requests import Part, Request
from service.client.results import Classifications, Labellings

ATTEMPTS = 4  # at a call whose model's version changes meanwhile
PARALLEL = 4  # parts on their way at a time
PATH = re.compile(r"(sequences|texts|tokens|records|states)\[(\d+)\]")

Progress = Callable[[int, int], None]
Answer = TypeVar("Answer", Classifications, Labellings)


class VersionChanged(RequestError):
    """The model's version has changed between the parts of a call."""

    def __init__(self) -> None:
        detail = "the model's version changed, again and again; repeat the call"
        super().__init__(409, {"detail": detail}, {}, "The model was replaced")


class Call(Generic[Answer]):
    """One attempt at a call: its parts, and their answers so far."""

    def __init__(
        self,
        task: str,
        kind: type[Answer],
        request: Request,
        limits: Limits | None,
        progress: Progress | None,
        address: str,
    ):
        """
        Args:
            address: of the service, for messages.
            limits: of the service; None if they are not known yet.
        """
        self.path = f"/{task}"
        self.kind: type[Answer] = kind
        self._address = address
        self._request, self._progress = request, progress
        self._answers: list[Answer] = []
        self._model = request.model
        self._done = 0
        self.parts = request.cut(limits or Limits())
        self.first = next(self.parts)
        self.is_large = self.first.end < len(request.sequences)
        if self.is_large or limits is not None:
            self._check(limits)

    def _check(self, limits: Limits | None) -> None:
        """Refuse a large call that must fail before anything is sent."""
        sequences, states = self._request.sequences, self._request.states
        if self.is_large and states is not None and len(states) != len(sequences):
            raise ValueError(f"states: {len(states)} for {len(sequences)} sequences")
        if self._request.kind != "sequences":
            return  # the service counts the steps of a text
        for index, frames in enumerate(sequences):
            if limits is not None and len(frames) > limits.steps:
                detail = f"a sequence may have at most {limits.steps} steps"
                message = f"has {len(frames)} steps"
                problem = {
                    "type": "urn:unrolled:error:too-large",
                    "detail": detail,
                    "errors": [{"path": f"sequences[{index}]", "message": message}],
                }
                title = "The request exceeds a limit"
                raise self._named(RequestError(413, problem, {}, title))

    def _named(self, error: RequestError) -> RequestError:
        error.address = self._address
        return error

    def encode(self, part: Part) -> bytes:
        """The body of a part's request."""
        return self._request.encode(part, self._model)

    def split(self, part: Part, error: RequestError) -> list[Part]:
        """Smaller parts in place of one that is too large for a limit which is not known,
        such as a proxy's.

        Raises:
            RequestError: the error itself, with the paths of the call's sequences.
            VersionChanged: the part's version is no longer in service.
        """
        if error.status == 413 and not error.errors and len(part.texts) > 1:
            return part.halves()
        if error.status == 404 and self._model != self._request.requested:
            raise self._named(VersionChanged()) from None
        for problem in error.errors:
            problem["path"] = PATH.sub(
                lambda match: f"{match[1]}[{int(match[2]) + part.begin}]",
                problem["path"],
                count=1,
            )
        raise error

    def add(self, part: Part, answers: list[Answer]) -> None:
        """Keep the answers to the next part, in order.

        Raises:
            InvalidAnswer: they are not the answers to its sequences.
            VersionChanged: they are another version's.
        """
        for answer in answers:
            model = f"{answer.model}@{answer.version}"
            if self._answers and model != self._model:
                raise self._named(VersionChanged())
            self._model = model
            self._answers.append(answer)
            self._done += len(answer.predictions)
        if self._done != part.end:
            error = InvalidAnswer(200, "Expected a prediction for each sequence")
            raise self._named(error)
        if self._progress is not None:
            self._progress(self._done, len(self._request.sequences))

    def result(self) -> Answer:
        """The answers to all parts as one."""
        first = self._answers[0]
        predictions = [p for answer in self._answers for p in answer.predictions]
        ids, table = self._request.ids, self._request.table
        return replace(first, predictions=predictions, ids=ids, _table=table)
