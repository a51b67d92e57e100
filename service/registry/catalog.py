"""The models in service, and which of them a request means."""

from dataclasses import dataclass

from model.bundle.bundle import Bundle, Metadata
from service import errors
from service.pool.admission import Admission
from service.registry.folder import DEFAULT, LATEST
from service.registry.state_tokens import TokenSigner
from service.settings import Settings
from service.worker.protocol import LoadResult

TASKS = ("classify", "label")
SOON = {"Retry-After": "1"}


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Model:
    """A bundle whose engine has given its golden answers in every worker.

    Whoever holds one can use it: the workers drop it when nobody does.
    """

    bundle: Bundle
    digest: str  # of the bundle as it was loaded
    number: int  # that the workers know it by
    loaded: LoadResult
    admission: Admission
    tokens: TokenSigner

    @property
    def metadata(self) -> Metadata:
        return self.bundle.metadata


class Catalog:
    """Those that are loaded, those that are broken, and whether more will come.

    A model is meant by its name alone, by `NAME@3` (a version) or by `NAME@stable`
    (a label; `latest` is always there). Its mappings are replaced, never changed.
    """

    def __init__(self, settings: Settings):
        self.models: dict[str, Model] = {}  # by name: what is meant by it alone
        self.versions: dict[str, dict[str, Model]] = {}  # by name, oldest first
        self.labels: dict[str, dict[str, str]] = {}  # by name: label to version
        self.broken: dict[str, str] = {}
        self.unloaded: frozenset[str] = frozenset()  # names, until they are asked for
        self._meant: dict[str, Model] = {}  # by all that a request may say
        # By task: how many features its models take; under None the default's.
        self.features: dict[str, dict[str | None, int]] = {t: {} for t in TASKS}
        self.complete = False  # every bundle is loaded, or broken
        self._settings = settings

    def get(self, reference: str) -> Model:
        """A model by name, `NAME@VERSION` or `NAME@LABEL`.

        Raises:
            NotReady: it is still loading, or broken.
            UnknownModel: there is none of that name, version or label.
        """
        model = self._meant.get(reference)
        if model is not None:
            return model
        if not self.complete:
            raise errors.NotReady("the models are still loading", headers=SOON)
        if reference in self.broken:
            raise errors.NotReady(f"the bundle of {reference} is broken")
        name = reference.partition("@")[0]
        if name in self.models:
            known = ", ".join(
                [*self.versions.get(name, ()), *self.labels.get(name, ())]
            )
            raise errors.UnknownModel(f"{name} has no such version; there are: {known}")
        known = ", ".join(self.models) or "none"
        raise errors.UnknownModel(f"no model of that name; there are: {known}")

    def default(self, task: str) -> Model | None:
        """The model for requests that name none: the setting's, or the first."""
        name = getattr(self._settings, f"default_{task}")
        if name:
            model = self._meant.get(name)
            return model if model and model.metadata.task == task else None
        if not self.complete:
            return None  # which is the first is not known yet
        fitting = (m for m in self.models.values() if m.metadata.task == task)
        return next(fitting, None)

    def choose(self, name: str | None, task: str) -> Model:
        """The model that a request names, or the default of its task.

        Raises:
            NotReady, UnknownModel: as `get`.
            InvalidRequest: the model is for the other task.
        """
        if name is None:
            model = self.default(task)
            if model is not None:
                return model
            if not self.complete:
                raise errors.NotReady("the models are still loading", headers=SOON)
            raise errors.UnknownModel(f"no model here answers /{task} by default")
        model = self.get(name)
        if model.metadata.task != task:
            other = model.metadata.task
            raise errors.InvalidRequest(
                f"{model.metadata.name} is for POST /{other}",
                [errors.FieldError("model", f"is for the task {other}, not {task}")],
            )
        return model

    def find(self, name: str | None, task: str) -> Model | None:
        """The model that `choose` would return, or None if it would raise."""
        if name is None:
            return self.default(task)
        model = self._meant.get(name)
        return model if model and model.metadata.task == task else None

    def streamable(self, task: str | None = None) -> list[str]:
        """The names of those whose state can be carried, of a task or of both."""
        return [
            name
            for name, model in self.models.items()
            if model.metadata.state_size and task in (None, model.metadata.task)
        ]

    def check_streamable(self, model: Model) -> None:
        """That a model's state can be carried.

        Raises:
            NotStreamable: it reads in both directions; names those that do not.
        """
        if model.metadata.state_size:
            return
        task, name = model.metadata.task, model.metadata.name
        others = " or ".join(self.streamable(task)) or "none here"
        raise errors.NotStreamable(
            f"{name} reads sequences in both directions, so it needs them whole;"
            f" to {task} step by step: {others}"
        )

    def _publish(
        self,
        versions: dict[str, dict[str, Model]],
        labels: dict[str, dict[str, str]],
    ) -> None:
        """Have these meant from now on, all at once.

        Args:
            labels: with `latest`; `default` says what a name alone means.
        """
        models, meant = {}, {}
        for name, there in versions.items():
            for version, model in there.items():
                meant[f"{name}@{version}"] = model
            for label, version in labels[name].items():
                meant[f"{name}@{label}"] = there[version]
            default = labels[name].get(DEFAULT, labels[name][LATEST])
            models[name] = meant[name] = there[default]
        self.versions, self.labels = versions, labels
        self.models, self._meant = models, meant
        self._count_features()

    def _count_features(self) -> None:
        for task in TASKS:
            taken: dict[str | None, int] = {
                reference: model.metadata.input.features
                for reference, model in self._meant.items()
                if model.metadata.task == task
            }
            default = self.default(task)
            if default is not None:
                taken[None] = default.metadata.input.features
            self.features[task] = taken
