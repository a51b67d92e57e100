"""Error messages for bodies that msgspec refuses: what is wrong, where, and how to go on.

A body is read for them only after it was refused. Messages name fields of the service, and
repeat nothing of the input.
"""

import re
from collections.abc import Mapping

import msgspec

from service.errors import FieldError, InvalidJson, InvalidRequest, did_you_mean

FILL_IN = "fill in missing values, or leave their steps out"
# msgspec's messages, which the tests of this module hold.
POSITION = re.compile(r"invalid character \(byte (\d+)\)")
UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
DEPTH = re.compile(
    r"Expected `(?:(?:object \| )?array`, got `(?:int|float)|(?:float|object)`, got `array)`"
)
NULL_NUMBER = "Expected `float`, got `null`"
PATH = " - at `$"
CONSTANTS = ("NaN", "Infinity")  # as Python, JavaScript and Java write them
NUMBER_CHARACTERS = b" \t\r\n0123456789.eE+-"
COMPLETE_LIST = re.compile(rb"\[,*\]")
MAX_DEPTH = 3  # of lists in lists: sequences, steps, features

Fields = tuple[str, ...]


def shape_hints(field: str) -> dict[str, str]:
    """For a field with sequences: what to say of the first number or list that is at
    another depth, by its path."""
    return {
        "": f'is a list: send an object, {{"{field}": [...]}}',
        f"{field}[0]": "is a number: write one step as [[[1, 2]]], and one feature over"
        " time as [[[1], [2]]]",
        f"{field}[0][0]": "is a number in place of a step, which is a list of features;"
        " one sequence: wrap it in a list",
        f"{field}[0][0][0]": "is a list in place of a number: too deep, remove a level",
    }


def invalid_json(text: bytes, error: Exception, fields: Fields) -> InvalidJson:
    """The error of a text that is not JSON. NaN and infinities, which Python writes, get
    their path.

    Args:
        fields: of the text's object.
    """
    message = str(error)  # holds a position, and nothing of the input
    match = POSITION.search(message)
    position = int(match[1]) if match else len(text)
    for constant in CONSTANTS:
        if text.startswith(constant.encode(), position):
            path = _path_of_number(text[:position], fields)
            if path is None:
                return InvalidJson(f"{constant} is not allowed: {FILL_IN}")
            hint = FieldError(path, f"must be a finite number: {FILL_IN}")
            return InvalidJson(f"{constant} is not allowed: {path}", [hint])
    return InvalidJson(message)


def wrong_structure(
    error: msgspec.ValidationError,
    name: str,
    fields: Fields,
    nested: Fields,
    hints: Mapping[str, str],
) -> InvalidRequest:
    """The error of a JSON text with another structure.

    Args:
        name: of the text.
        fields: of its object.
        nested: fields of its inner objects.
        hints: see `shape_hints`.
    """
    text = str(error)
    # A key that is not known may hold anything, this separator too.
    message, separator, path = text.rpartition(PATH)
    if not separator:
        message, path = text, ""
    path = path.rstrip("`").lstrip(".").replace("[...]", "[]")
    unknown = UNKNOWN_FIELD.match(text)
    if unknown:
        if not nested:  # the key is the object's own, whatever it holds
            path = ""
        known = nested if path else fields
        key = unknown[1].partition("`")[0]
        message = f"allows only the fields {', '.join(known)}{did_you_mean(key, known)}"
    elif DEPTH.fullmatch(message):
        message = hints.get(path, message)
    elif message == NULL_NUMBER:
        message = f"is null: {FILL_IN}"
    return InvalidRequest(
        f"the {name} has the wrong structure", [FieldError(path or name, message)]
    )


def _path_of_number(before: bytes, fields: Fields) -> str | None:
    """The path of the number that follows a text, if it is one of a field's."""
    key, _, rest = before.rpartition(b'"')
    name = next((f for f in fields if key.endswith(b'"' + f.encode())), None)
    skeleton = rest.translate(None, NUMBER_CHARACTERS)  # lists and commas remain
    if name is None or not skeleton.startswith(b":"):
        return None
    for _ in range(MAX_DEPTH):  # remove the complete lists, the innermost first
        match = COMPLETE_LIST.search(skeleton)
        if match:  # most are alike, and `replace` is ten times as fast
            skeleton = COMPLETE_LIST.sub(b"", skeleton.replace(match[0], b""))
    _, *open_lists = skeleton.split(b"[", MAX_DEPTH + 1)
    if len(open_lists) > MAX_DEPTH or b"]" in skeleton:
        return None
    return name + "".join(f"[{commas.count(b',')}]" for commas in open_lists)
