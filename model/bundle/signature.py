"""Sign bundles, and verify signatures: Ed25519 over `bundle.json`.

`bundle.json` holds the digest of every other file, so its signature covers the whole
bundle, name and version included. The signature is a file of 64 bytes beside it, as
written by `openssl pkeyutl -sign -rawin`; keys are PEM files. All public keys in a file
are accepted, so that a key can be replaced.

The package cryptography is only needed to sign and to verify.
"""

import os
import re
from pathlib import Path
from typing import Any

from model.bundle import bounded_files

MISSING = "signatures need the package cryptography: pip install 'WHEEL[signing]'"
PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)
MAX_BYTES = 64 * 2**10  # of a signature's file; a signature has 64


class SignatureError(ValueError):
    """An invalid key, or a bundle that none of the keys signed."""


def generate(path: Path) -> Path:
    """Write a private key that only its owner can read, and return its public key's file.

    The public key is written beside it, with the suffix `.pub`.

    Raises:
        SignatureError: one of the files exists, or can't be written.
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
    public_path = path.with_name(f"{path.name}.pub")
    for file, text, mode in ((path, private, 0o600), (public_path, public, 0o644)):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(file, flags, mode), "wb") as opened:
                opened.write(text)
        except OSError as error:
            raise SignatureError(f"{file}: {error.strerror}") from None
    return public_path


def sign(text: bytes, key: Path) -> bytes:
    """Return the signature of `text`.

    Raises:
        SignatureError: `key` is not the file of an Ed25519 private key.
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
    """Refuse a text that none of the keys signed.

    Raises:
        SignatureError: names the file that is missing or wrong.
        BundleError: the signature is not a regular file, or too large.
    """
    accepted = public_keys(keys)
    try:
        signed = bounded_files.read(signature, MAX_BYTES)
    except OSError as error:
        raise SignatureError(f"{signature}: not signed ({error.strerror})") from None
    if not any(_is_signed(text, signed, key) for key in accepted):
        raise SignatureError(f"{signature}: signed by no key of {keys}")


def public_keys(path: Path) -> list[Any]:
    """Return the public keys of a PEM file, at least one.

    Raises:
        SignatureError: the file can't be read, or holds anything else.
    """
    serialization, ed25519 = _library()
    keys = []
    for part in PEM.finditer(_read(path)):
        try:
            key = serialization.load_pem_public_key(part[0])
        except ValueError as error:
            raise SignatureError(f"{path}: no public key ({error})") from None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise SignatureError(f"{path}: no Ed25519 key")
        keys.append(key)
    if not keys:
        raise SignatureError(f"{path}: no public key")
    return keys


def _is_signed(text: bytes, signature: bytes, key: Any) -> bool:
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
