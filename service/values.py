"""Settings that are more than a number or a word: checked, and taken apart."""

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, SecretStr

if TYPE_CHECKING:
    import ssl

SHORTEST_KEY = 16
DIGEST = r"([A-Za-z0-9._-]{1,64}:)?[0-9A-Fa-f]{64}"
ORIGIN = r"https?://[^/\s,]+|\*"


def split_list(given: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in given.split(",")] if given else []


def key_digests(given: SecretStr) -> dict[str, bytes]:
    """SHA-256 of the keys that may ask, by name."""
    split = [part.rpartition(":") for part in split_list(given.get_secret_value())]
    return {
        name or f"key{number}": bytes.fromhex(digest)
        for number, (name, _, digest) in enumerate(split, 1)
    }


def _digests(given: SecretStr) -> SecretStr:
    if not all(
        re.fullmatch(DIGEST, one) for one in split_list(given.get_secret_value())
    ):
        raise ValueError("must be NAME:SHA256 (64 hexadecimal digits), ...")
    if len(key_digests(given)) < len(split_list(given.get_secret_value())):
        raise ValueError("must have different names")
    return given


def _origins(given: str) -> str:
    if not all(re.fullmatch(ORIGIN, one) for one in split_list(given)):
        raise ValueError("must be origins such as https://example.org, or *")
    return given


def _long_enough(given: SecretStr) -> SecretStr:
    keys = given.get_secret_value()
    if keys and min(map(len, split_list(keys))) < SHORTEST_KEY:
        raise ValueError(f"each key must have {SHORTEST_KEY} characters or more")
    try:
        keys.encode()
    except UnicodeEncodeError:
        raise ValueError("must be text in UTF-8") from None
    return given


def _no_password() -> str:
    raise ValueError("TLS_KEY: is encrypted; give one that is not")


def tls_context(certificate: str, key: str) -> "ssl.SSLContext":
    """Returns what a server speaks TLS with: 1.2 at least, and with forward secrecy, as
    Python's defaults have it.

    Raises:
        ValueError: the files can't be read, or don't belong together.
    """
    import ssl  # only where it is wanted

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Else OpenSSL would ask whoever sits at the terminal.
        context.load_cert_chain(certificate, key, password=_no_password)
    except OSError as error:  # also what is wrong with their contents
        told = error.strerror or type(error).__name__
        raise ValueError(f"TLS_CERTIFICATE, TLS_KEY: {told}") from None
    return context


ApiKeys = Annotated[SecretStr, AfterValidator(_digests)]
Origins = Annotated[str, AfterValidator(_origins)]
StateKey = Annotated[SecretStr, AfterValidator(_long_enough)]
