"""The loaded models, and the lookup of the model that a request names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
        # By task: what each reference takes; the default under None.
        self.inputs: dict[str, Inputs] = {t: Inputs({}, {}) for t in TASKS}
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
            raise errors.UnknownModel(f"there is no default model for /{task}")
        model = self.get(reference)
        if model.metadata.task != task:
            other = model.metadata.task
            raise errors.InvalidRequest(
                f"{model.metadata.name} is for POST /{other}",
                [errors.FieldError("model", f"has the task {other}, not {task}")],
            )
        return model

    def find(self, reference: str | None, task: str) -> Model | None:
        """The model that `choose` would return, or None if it would raise."""
        if reference is None:
            return self.default(task)
        model = self._by_reference.get(reference)
        return model if model and model.metadata.task == task else None

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
        self._update_inputs()

    def _update_inputs(self) -> None:
        for task in TASKS:
            models: dict[str | None, Model] = {
                reference: model
                for reference, model in self._by_reference.items()
                if model.metadata.task == task
            }
            by_input: dict[str, dict[str | None, Model]] = {}
            for reads in ("frames", "text", "records"):
                fitting = {r: m for r, m in models.items() if m.reads == reads}
                default = self.default(task, reads)
                if default is not None:
                    fitting[None] = default
                by_input[reads] = fitting
            counts = {
                reads: {r: m.metadata.input.features for r, m in fitting.items()}
                for reads, fitting in by_input.items()
            }
            self.inputs[task] = Inputs(
                counts["frames"],
                {
                    r: (model.vocabulary.kind, counts["text"][r])
                    for r, model in by_input["text"].items()
                    if model.vocabulary is not None
                },
                {
                    r: model.columns
                    for r, model in by_input["records"].items()
                    if model.columns is not None
                },
            )
