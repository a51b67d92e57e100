"""Command-line options for all settings of `config.Config`."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, get_args

import typer

from model.config import OPEN, Config

SECTIONS = ("data", "network", "training", "augmentation")
COLUMNS = ("sequence_column", "label_column", "step_column", "group_column", "ignore")
# Settings that choose the sequences and their parts.
DATA = ("task", "test", *COLUMNS, "validation_fraction", "test_fraction", "seed")


def config_flags(
    only: Collection[str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: add an option for each setting, and pass them as `flags`.

    `flags` holds the options that were given, nested for `Config.update`. With `only`
    there are options for these settings.
    """
    return functools.partial(_add_flags, only)


def _add_flags(
    only: Collection[str] | None, command: Callable[..., None]
) -> Callable[..., None]:
    arguments = [
        p for p in inspect.signature(command).parameters.values() if p.name != "flags"
    ]
    sections = {
        field: section
        for field, section in _sections().items()
        if field != "source" and (only is None or field in only)
    }

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        flags = nested({field: values.pop(field) for field in sections})
        command(**values, flags=flags)

    settings = [_parameter(field, section) for field, section in sections.items()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=keyword) for p in arguments] + settings
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings by their sections, for `Config.update`, without those of None."""
    sections, changes = _sections(), dict[str, dict[str, Any]]()
    for name, value in settings.items():
        if value is not None:
            changes.setdefault(sections[name], {})[name] = value
    return changes


def _sections() -> dict[str, str]:
    """Return the section of each setting."""
    return {field: section for section in SECTIONS for field in _fields(section)}


def _fields(section: str) -> dict[str, Any]:
    return type(getattr(Config(), section)).model_fields


def _parameter(field: str, section: str) -> inspect.Parameter:
    info = _fields(section)[field]
    default = "" if info.default in (None, ()) else f" [default: {info.default}]"
    if field in OPEN:
        default = " [default: by the data]"
    option = typer.Option(help=f"{info.description}{default}", rich_help_panel=section)
    kind = list[str] if get_args(info.annotation) == (str, ...) else info.annotation
    optional = kind if type(None) in get_args(kind) else kind | None
    return inspect.Parameter(
        field,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[optional, option],
    )
