"""Command-line options for all settings of `config.Config`."""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, get_args

import typer

from model.config import OPEN, SECTION_OF, Config, nested

COLUMNS = (
    *("sequence_column", "label_column", "step_column", "group_column", "ignore"),
    *("encoding", "text", "column"),
)
TEXT = (
    *("characters", "min_count", "max_words", "buckets", "embedding"),
    *("categories", "numbers", "time"),
)
ALIASES = {"label_column": ("--label-column", "--label")}
# Settings that choose the sequences and their parts.
DATA = (
    *("task", "test", *COLUMNS, *TEXT, "labels_are_classes"),
    *("validation_fraction", "test_fraction", "seed"),
)


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
        for field, section in SECTION_OF.items()
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


def options(config: Config, base: Config) -> list[str]:
    """Return the options that turn `base` into `config`, for a command line."""
    words = ["--name", config.name] if config.name != base.name else []
    for name, section in SECTION_OF.items():
        value, known = getattr(config, section), getattr(base, section)
        unset = name not in value.model_fields_set
        value, before = getattr(value, name), getattr(known, name)
        same = name in known.model_fields_set and value == before
        if name == "source" or unset or same or value is None:
            continue
        option = f"--{name.replace('_', '-')}"
        match value:
            case bool():
                words.append(option if value else f"--no-{option[2:]}")
            case tuple() if name in ("ignore", "categories", "numbers"):
                words += [option, ",".join(value)] if value else []
            case tuple():
                words += [option, *map(str, value)]
            case _:
                words += [option, str(value)]
    return words


def _parameter(field: str, section: str) -> inspect.Parameter:
    info = type(getattr(Config(), section)).model_fields[field]
    default = "" if info.default in (None, ()) else f" [default: {info.default}]"
    if field in (*OPEN, "epochs"):
        default = " [default: by the data]"
    names = ALIASES.get(field, ())
    option = typer.Option(
        *names, help=f"{info.description}{default}", rich_help_panel=section
    )
    kind = list[str] if get_args(info.annotation) == (str, ...) else info.annotation
    optional = kind if type(None) in get_args(kind) else kind | None
    return inspect.Parameter(
        field,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[optional, option],
    )
