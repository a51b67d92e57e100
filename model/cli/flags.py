"""A flag of the command line for each setting of `config.Config`."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer

from model.config import Config

SECTIONS = ("data", "network", "training", "augmentation")


def of_config(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose argument `flags` is gathered from one flag a setting.

    `flags` then holds what the user gave, nested as `Config.update` takes it.
    """
    own = [
        p for p in inspect.signature(command).parameters.values() if p.name != "flags"
    ]
    places = {
        field: section
        for section in SECTIONS
        for field in _fields(section)
        if field != "source"
    }

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        flags: dict[str, dict[str, Any]] = {}
        for field, section in places.items():
            value = values.pop(field)
            if value is not None:
                flags.setdefault(section, {})[field] = value
        command(**values, flags=flags)

    settings = [_parameter(field, section) for field, section in places.items()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=keyword) for p in own] + settings
    gathered.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    gathered.__annotations__ = {p.name: p.annotation for p in parameters}
    return gathered


def _fields(section: str) -> dict[str, Any]:
    return type(getattr(Config(), section)).model_fields


def _parameter(field: str, section: str) -> inspect.Parameter:
    info = _fields(section)[field]
    shown = "" if info.default is None else f" [default: {info.default}]"
    option = typer.Option(help=f"{info.description}{shown}", rich_help_panel=section)
    kind = info.annotation
    optional = kind if type(None) in get_args(kind) else kind | None
    return inspect.Parameter(
        field,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[optional, option],
    )
