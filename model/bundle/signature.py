"""Who wrote a bundle: an Ed25519 signature of `bundle.json`.

It holds the digest of every other file, so its signature is that of the whole bundle,
name and version included. The signature is 64 bytes in a file beside it, as `openssl
pkeyutl -sign -rawin` writes them; keys are PEM files. Several public keys in one file
are all accepted, which is how a key is replaced.

The library is needed by those alone who sign, or ask for signatures.
"""

import os
import re
from pathlib import Path
from typing import Any

from model.bundle import bounded_files

MISSING = "signatures need the package cryptography: pip install 'unrolled[signing]'"
PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)
MOST = 64 * 2**10  # bytes of a signature's file; a signature has 64


class SignatureError(ValueError):
    """A key that is none, or a bundle that none of the keys has signed."""


def generate(path: Path) -> Path:
    """Write a new private key, readable by its owner alone, and beside it the public
    one (`.pub`), whose path is returned.

    Raises:
        SignatureError: there is such a file already.
    """
    serialization, ed25519 = _library()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    shown = path.with_name(f"{path.name}.pub")
    for file, text, mode in ((path, private, 0o600), (shown, public, 0o644)):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(file, flags, mode), "wb") as opened:
                opened.write(text)
        except OSError as error:
            raise SignatureError(f"{file}: {error.strerror}") from None
    return shown


def sign(text: bytes, key: Path) -> bytes:
    """The signature of a text.

    Raises:
        SignatureError: the file holds no private key of the kind.
    """
    serialization, ed25519 = _library()
    try:
        private = serialization.load_pem_private_key(_read(key), password=None)
    except (ValueError, TypeError) as error:  # TypeError: it asks for a password
        raise SignatureError(f"{key}: no private key ({error})") from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise SignatureError(f"{key}: no Ed25519 key")
    return bytes(private.sign(text))


def verify(text: bytes, signature: Path, keys: Path) -> None:
    """Refuse a text that none of the keys has signed.

    Raises:
        SignatureError: says which file is missing or wrong.
        BundleError: the signature's is no regular file, or too large.
    """
    known = public_keys(keys)
    try:
        given = bounded_files.read(signature, MOST)
    except OSError as error:
        raise SignatureError(f"{signature}: not signed ({error.strerror})") from None
    if not any(_signed(text, given, key) for key in known):
        raise SignatureError(f"{signature}: signed by no key of {keys}")


def public_keys(path: Path) -> list[Any]:
    """The keys of a PEM file; at least one.

    Raises:
        SignatureError: it can't be read, or holds something else too.
    """
    serialization, ed25519 = _library()
    found = []
    for part in PEM.finditer(_read(path)):
        try:
            key = serialization.load_pem_public_key(part[0])
        except ValueError as error:
            raise SignatureError(f"{path}: no public key ({error})") from None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise SignatureError(f"{path}: no Ed25519 key")
        found.append(key)
    if not found:
        raise SignatureError(f"{path}: no public key")
    return found


def _signed(text: bytes, signature: bytes, key: Any) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignatureError(f"{path}: {error.strerror}") from None


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise SignatureError(MISSING) from None
    return serialization, ed25519
