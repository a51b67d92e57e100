"""The loaded models, and the lookup of the model that a request names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from model.bundle.bundle import Bundle
from model.bundle.labels import DEFAULT, LATEST
from model.bundle.metadata import Metadata
from model.bundle.records import RecordSchema
from model.bundle.vocabulary import Vocabulary
from service import errors
from service.codecs import records, text
from service.codecs.fast_json import Inputs
from service.pool.admission import Admission
from service.registry.state_tokens import State, TokenSigner
from service.settings import Settings
from service.worker.protocol import LoadResult

TASKS = ("classify", "label")
READS = ("frames", "text", "records")
RETRY_SOON = {"Retry-After": "1"}


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Model:
    """A bundle whose engine has reproduced its golden answers in every worker.

    Any reference to it keeps it usable: the workers drop it with the last one.
    """

    bundle: Bundle
    digest: str  # of the bundle as it was loaded
    number: int  # by which the workers know it
    loaded: LoadResult
    admission: Admission
    tokens: TokenSigner
    vocabulary: Vocabulary | None  # of a network that reads text
    schema: RecordSchema | None  # of a network that reads records

    @property
    def metadata(self) -> Metadata:
        return self.bundle.metadata

    @property
    def reads(self) -> str:
        """The model's kind of input: frames, text, or records."""
        kind = self.metadata.input.kind
        return "text" if kind in ("tokens", "characters") else kind

    @property
    def columns(self) -> dict[str, str] | None:
        """The kind of each column of records, by its name; None for other inputs."""
        return None if self.schema is None else self.schema.kinds

    @property
    def decoding(self) -> tuple[str, dict[str, str] | None]:
        """The kind of input (`Metadata.input`) and the columns of records: what a body is
        decoded for, besides the number of features."""
        return self.metadata.input.kind, self.columns

    async def encode(
        self,
        request: "EncodedInput",
        before: Sequence[State] = (),
        names: Sequence[str] = (),
    ) -> tuple[list[np.ndarray], list[int | None]]:
        """The frames [T, F] of a decoded request's sequences, and their last times.

        Args:
            before: the state of each sequence.
            names: of the sequences in error messages.

        Raises:
            InvalidRequest: a record doesn't fit the model.
        """
        if request.tokens is not None and self.vocabulary is not None:
            frames = await text.encode(self.vocabulary, request.tokens)
        elif request.records is not None and self.schema is not None:
            return await records.encode(
                self.schema, request.records, [s.time for s in before], names
            )
        else:
            frames = request.sequences
        return frames, [None] * len(frames)


class EncodedInput(Protocol):
    """The input of a decoded request, of which one is there."""

    @property
    def sequences(self) -> list[np.ndarray]: ...

    @property
    def tokens(self) -> list[Sequence[str]] | None: ...

    @property
    def records(self) -> list[list[dict[str, Any]]] | None: ...


@dataclass(frozen=True, slots=True)
class TaskModels:
    """The models of one task at one moment.

    A request takes all that it needs from the same one: the version whose inputs it was
    decoded for is the version that computes it, whatever is published meanwhile.
    """

    by_reference: Mapping[str, Model]
    defaults: Mapping[str, Model]  # by what they read
    inputs: Inputs  # what each reference takes; the default under None

    @classmethod
    def of(
        cls, by_reference: Mapping[str, Model], defaults: Mapping[str, Model]
    ) -> Self:
        """Return the models of a task, by reference, with its default models."""
        models: list[tuple[str | None, Model]] = [*by_reference.items()]
        models += [(None, model) for model in defaults.values()]
        features = {
            r: m.metadata.input.features for r, m in models if m.reads == "frames"
        }
        text = {
            r: (m.vocabulary.kind, m.metadata.input.features)
            for r, m in models
            if m.vocabulary is not None
        }
        columns = {r: m.columns for r, m in models if m.columns is not None}
        return cls(by_reference, defaults, Inputs(features, text, columns))

    def find(self, reference: str | None, reads: str) -> Model | None:
        """Return the model of a reference, or the default of those that read so."""
        if reference is None:
            return self.defaults.get(reads)
        return self.by_reference.get(reference)


class Catalog:
    """The models by name, version and label.

    A reference is a name, `NAME@3` (a version) or `NAME@stable` (a label; `latest`
    always exists). The mappings are replaced as a whole, never changed.
    """

    def __init__(self, settings: Settings):
        self.models: dict[str, Model] = {}  # by name: the default version
        self.versions: dict[str, dict[str, Model]] = {}  # by name, oldest first
        self.labels: dict[str, dict[str, str]] = {}  # by name: label to version
        self.broken: dict[str, str] = {}  # reasons, see `LoadErrors.by_key`
        self.unloaded: frozenset[str] = frozenset()  # names, until loaded again
        self._by_reference: dict[str, Model] = {}
        self.tasks = {task: TaskModels.of({}, {}) for task in TASKS}
        self.complete = False  # every bundle is loaded, or broken
        self._settings = settings

    def get(self, reference: str) -> Model:
        """The model of a name, `NAME@VERSION` or `NAME@LABEL`.

        Raises:
            NotReady: it is still loading, or broken.
            UnknownModel: there is no such name, version or label.
        """
        model = self._by_reference.get(reference)
        if model is not None:
            return model
        if not self.complete:
            raise errors.NotReady("the models are still loading", headers=RETRY_SOON)
        if reference in self.broken:
            raise errors.NotReady(f"the bundle of {reference} is broken")
        name = reference.partition("@")[0]
        if name in self.models:
            known = [*self.versions.get(name, ()), *self.labels.get(name, ())]
            raise errors.UnknownModel(
                f"{name} has no such version; available: {errors.list_names(known)}"
            )
        names, hint = (
            errors.list_names(self.models),
            errors.did_you_mean(name, self.models),
        )
        raise errors.UnknownModel(f"no such model; available: {names}{hint}")

    def default(self, task: str, reads: str = "frames") -> Model | None:
        """The model for requests that name none: the setting's, or the first that reads
        frames, text or records."""
        reference = getattr(self._settings, f"default_{task}")
        if reference:
            model = self._by_reference.get(reference)
            if not (model and model.metadata.task == task):
                return None
            if model.reads == reads:
                return model
        if not self.complete:
            return None  # the first is not known yet
        for model in self.models.values():
            if model.metadata.task == task and model.reads == reads:
                return model
        return None

    def choose(self, reference: str | None, task: str, reads: str = "frames") -> Model:
        """The model that a request names, or the default of its task and input.

        Raises:
            NotReady, UnknownModel: see `get`.
            InvalidRequest: the model has the other task.
        """
        if reference is None:
            model = self.default(task, reads)
            if model is not None:
                return model
            if not self.complete:
                raise errors.NotReady(
                    "the models are still loading", headers=RETRY_SOON
                )
            raise errors.UnknownModel(f"no model for POST /{task} reads {reads}")
        model = self.get(reference)
        if model.metadata.task != task:
            other = model.metadata.task
            raise errors.InvalidRequest(
                f"{model.metadata.name} is for POST /{other}",
                [errors.FieldError("model", f"has the task {other}, not {task}")],
            )
        return model

    def streamable(self, task: str | None = None) -> list[str]:
        """The names of the models that can be streamed, of one task or of both."""
        return [
            name
            for name, model in self.models.items()
            if model.metadata.state_size and task in (None, model.metadata.task)
        ]

    def check_streamable(self, model: Model) -> None:
        """Check that a model's state can be carried from request to request.

        Raises:
            NotStreamable: it is bidirectional; names the models that are not.
        """
        if model.metadata.state_size:
            return
        task, name = model.metadata.task, model.metadata.name
        others = ", ".join(self.streamable(task)) or "none"
        raise errors.NotStreamable(
            f"{name} is bidirectional and needs whole sequences; models for"
            f" {task} that can be streamed: {others}"
        )

    def _publish(
        self,
        versions: dict[str, dict[str, Model]],
        labels: dict[str, dict[str, str]],
    ) -> None:
        """Serve these models from now on, all at once.

        Args:
            labels: with `latest`; `default` is the version of the bare name.
        """
        models, by_reference = {}, {}
        for name, loaded in versions.items():
            for version, model in loaded.items():
                by_reference[f"{name}@{version}"] = model
            for label, version in labels[name].items():
                by_reference[f"{name}@{label}"] = loaded[version]
            default = labels[name].get(DEFAULT, labels[name][LATEST])
            models[name] = by_reference[name] = loaded[default]
        self.versions, self.labels = versions, labels
        self.models, self._by_reference = models, by_reference
        self._update_tasks()

    def _update_tasks(self) -> None:
        self.tasks = {
            task: TaskModels.of(
                {
                    reference: model
                    for reference, model in self._by_reference.items()
                    if model.metadata.task == task
                },
                {
                    reads: model
                    for reads in READS
                    if (model := self.default(task, reads)) is not None
                },
            )
            for task in TASKS
        }
