"""Types of settings that need validation or parsing: API keys, origins, TLS files."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr

if TYPE_CHECKING:
    import ssl

MIN_KEY_CHARACTERS = 16
DIGEST = r"([A-Za-z0-9._-]{1,64}:)?[0-9A-Fa-f]{64}"
ORIGIN = r"https?://[^/\s,]+|\*"


def split_list(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part.strip() for part in text.split(",")] if text else []


def key_digests(setting: SecretStr) -> dict[str, bytes]:
    """The SHA-256 digests of API keys, by the key's name."""
    pairs = [key.rpartition(":") for key in split_list(setting.get_secret_value())]
    return {
        name or f"key{number}": bytes.fromhex(digest)
        for number, (name, _, digest) in enumerate(pairs, 1)
    }


def tls_context(certificate: str, key: str) -> "ssl.SSLContext":
    """A server's TLS context, with Python's defaults: TLS 1.2 or later, with forward
    secrecy.

    Raises:
        ValueError: a file can't be read, or the key is not the certificate's.
    """
    import ssl  # needed only with TLS

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a callback OpenSSL would ask for the password on the terminal.
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except OSError as error:  # also for invalid contents
        reason = error.strerror or type(error).__name__
        raise ValueError(f"TLS_CERTIFICATE, TLS_KEY: {reason}") from None
    return context


def _refuse_password() -> str:
    raise ValueError("TLS_KEY: is encrypted; give an unencrypted key")


def _check_folders(setting: str) -> str:
    if not all(split_list(setting)):
        raise ValueError("must be folders, separated by commas")
    return setting


def _check_digests(setting: SecretStr) -> SecretStr:
    keys = split_list(setting.get_secret_value())
    if not all(re.fullmatch(DIGEST, key) for key in keys):
        raise ValueError("must be NAME:SHA256 (64 hexadecimal digits), ...")
    if len(key_digests(setting)) < len(keys):
        raise ValueError("must have different names")
    return setting


def _check_origins(setting: str) -> str:
    if not all(re.fullmatch(ORIGIN, origin) for origin in split_list(setting)):
        raise ValueError("must be origins such as https://example.org, or *")
    return setting


def _check_state_keys(setting: SecretStr) -> SecretStr:
    keys = setting.get_secret_value()
    if keys and min(map(len, split_list(keys))) < MIN_KEY_CHARACTERS:
        raise ValueError(f"each key must have {MIN_KEY_CHARACTERS} characters or more")
    try:
        keys.encode()
    except UnicodeEncodeError:
        raise ValueError("must be text in UTF-8") from None
    return setting


BundleFolders = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value),
    AfterValidator(_check_folders),
]
ApiKeys = Annotated[SecretStr, AfterValidator(_check_digests)]
Origins = Annotated[str, AfterValidator(_check_origins)]
StateKey = Annotated[SecretStr, AfterValidator(_check_state_keys)]
