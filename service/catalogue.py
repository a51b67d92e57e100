"""The models in service, and which of them a request means."""

from dataclasses import dataclass

from model.bundle import Bundle, Metadata

from . import errors
from .admission import Admission
from .messages import Loaded
from .settings import Settings
from .state_tokens import Tokens

TASKS = ("classify", "label")
SOON = {"Retry-After": "1"}


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle whose engine has given its golden answers in every worker."""

    bundle: Bundle
    digest: str  # of the bundle as it was loaded
    loaded: Loaded
    admission: Admission
    tokens: Tokens

    @property
    def metadata(self) -> Metadata:
        return self.bundle.metadata


class Catalogue:
    """Those that are loaded, those that are broken, and whether more will come."""

    def __init__(self, settings: Settings):
        self.models: dict[str, Model] = {}
        self.broken: dict[str, str] = {}
        # By task: how many features its models take; under None the default's.
        self.features: dict[str, dict[str | None, int]] = {t: {} for t in TASKS}
        self.complete = False  # every bundle is loaded, or broken
        self._settings = settings

    def get(self, name: str) -> Model:
        """A model by name.

        Raises:
            NotReady: it is still loading, or broken.
            UnknownModel: there is none of that name.
        """
        model = self.models.get(name)
        if model is not None:
            return model
        if not self.complete:
            raise errors.NotReady("the models are still loading", headers=SOON)
        if name in self.broken:
            raise errors.NotReady(f"the bundle of {name} is broken")
        known = ", ".join(self.models) or "none"
        raise errors.UnknownModel(f"no model of that name; there are: {known}")

    def default(self, task: str) -> Model | None:
        """The model for requests that name none: the setting's, or the first."""
        name = getattr(self._settings, f"default_{task}")
        fitting = [m for m in self.models.values() if m.metadata.task == task]
        if name:
            fitting = [model for model in fitting if model.metadata.name == name]
        elif not self.complete:
            return None  # which is the first is not known yet
        return next(iter(fitting), None)

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

    def _count_features(self) -> None:
        for task in TASKS:
            taken: dict[str | None, int] = {
                name: model.metadata.input.features
                for name, model in self.models.items()
                if model.metadata.task == task
            }
            default = self.default(task)
            if default is not None:
                taken[None] = default.metadata.input.features
            self.features[task] = taken
