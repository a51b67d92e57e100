"""A sequence's state as a token that its caller keeps: signed, and nothing stored.

Any service with the same key and bundle goes on from it, also after a restart. A
token is base64url of

    format 1 | key 4 | weights 1 | steps 8 | bundle's digest 32 | version 4
    | length of the name 1 | name | state 4 * S (float32) | HMAC-SHA256 32

in bytes (little-endian), so all tokens of a model have one length. The HMAC
(RFC 2104) covers all that stands before it. Where API keys are set, its key depends on
the owner of the caller's: no other owner can go on from the token.
"""

import binascii
import hashlib
import hmac
import logging
import secrets
import struct
from typing import NamedTuple

from model.bundle.bundle import Metadata
from service.errors import FieldError, InvalidState, StateConflict
from service.settings import PREFIX, Settings

log = logging.getLogger(__name__)

FORMAT = 1
HEAD = struct.Struct("<B4sBQ32sIB")
MAC = 32
LONGEST = 2**20  # characters of a token that is looked at
WEIGHTS = ("float32", "int8")
_URL = bytes.maketrans(b"+/", b"-_")
_PLAIN = bytes.maketrans(b"-_+/", b"+/??")  # theirs are not ours


class SigningKeys:
    """The keys of the setting: the first signs, all verify."""

    def __init__(self, keys: list[bytes]):
        self.signing = keys[0]
        self.by_id = {_id(key): key for key in keys}
        self.id = _id(self.signing)


def load_keys(settings: Settings) -> SigningKeys:
    """The setting's keys, or a random one, with a warning."""
    given = settings.state_key.get_secret_value()
    if given:
        return SigningKeys([key.strip().encode() for key in given.split(",")])
    log.warning("%sSTATE_KEY is not set: no state token outlives this process", PREFIX)
    return SigningKeys([secrets.token_bytes(32)])


class State(NamedTuple):
    """Where a sequence is."""

    steps: int  # taken so far
    packed: bytes  # [S] float32; empty where nothing was taken

    def after(self, steps: int, packed: bytes) -> "State":
        """Where it is so many steps later."""
        return State(self.steps + steps, packed)


INITIAL_STATE = State(0, b"")


class TokenSigner:
    """Signs and verifies the tokens of one model."""

    def __init__(
        self, keys: SigningKeys, metadata: Metadata, digest: str, precision: str
    ):
        """
        Args:
            digest: SHA-256 of the bundle, in hexadecimal digits.
            precision: of the weights that compute.
        """
        self._keys, self._metadata = keys, metadata
        self._weights = WEIGHTS.index(precision)
        self._digest = bytes.fromhex(digest)
        self._size = 4 * metadata.state_size

    def sign(self, state: State, owner: str = "") -> str:
        """The token of a state.

        Args:
            owner: of the API key that may go on from it; empty where there are none.
        """
        name = self._metadata.name.encode()
        head = HEAD.pack(
            FORMAT,
            self._keys.id,
            self._weights,
            state.steps,
            self._digest,
            int(self._metadata.version),
            len(name),
        )
        content = head + name + state.packed
        mac = hmac.digest(_bound(self._keys.signing, owner), content, "sha256")
        encoded = binascii.b2a_base64(content + mac, newline=False)
        return encoded.translate(_URL, b"=").decode()

    def verify_all(self, tokens: list[str | None], owner: str = "") -> list[State]:
        """The states of a request's tokens; the beginning where there is none.

        Raises:
            InvalidState, StateConflict: as `verify`; names each that is at fault.
        """
        states, wrong = [], []
        for place, token in enumerate(tokens):
            try:
                if token is None:
                    states.append(INITIAL_STATE)
                else:
                    states.append(self.verify(token, f"states[{place}]", owner))
            except (InvalidState, StateConflict) as error:
                wrong.append(error)
        if wrong:
            first = next((e for e in wrong if isinstance(e, InvalidState)), wrong[0])
            faults = [fault for error in wrong for fault in error.errors]
            raise type(first)(first.detail, faults)
        return states

    def verify(self, token: str, path: str = "state", owner: str = "") -> State:
        """The state of a token.

        Args:
            path: of the field that holds it.
            owner: of the caller's API key.

        Raises:
            InvalidState: no token, changed, signed with another key, or given to
                another owner.
            StateConflict: of another model, version, bundle or precision.
        """
        try:
            return self._open(token, owner)
        except (InvalidState, StateConflict) as error:
            fault = FieldError(path, error.detail)
            raise type(error)(f"{path} {error.detail}", [fault]) from None

    def _open(self, token: str, owner: str) -> State:
        data = _decode(token)
        if len(data) <= HEAD.size + MAC:
            raise InvalidState("is no state token")
        made, key, weights, steps, digest, version, length = HEAD.unpack_from(data)
        if made != FORMAT:
            raise InvalidState("is of a format that this service doesn't know")
        if key not in self._keys.by_id:
            raise InvalidState("is signed with another key, or has been changed")
        content = data[:-MAC]
        mac = hmac.digest(_bound(self._keys.by_id[key], owner), content, "sha256")
        if not hmac.compare_digest(mac, data[-MAC:]):
            other = ", or is of another API key" if owner else ""
            raise InvalidState(f"has been changed{other}")
        # From here on it is what a service with this key has written.
        name = content[HEAD.size : HEAD.size + length].decode()
        metadata = self._metadata
        if name != metadata.name:
            raise StateConflict(f"is of the model {name}, not of {metadata.name}")
        if version != int(metadata.version):
            raise StateConflict(
                f"is of version {version} of {name}; version {metadata.version} serves"
            )
        packed = content[HEAD.size + length :]
        if digest != self._digest or len(packed) != self._size:
            raise StateConflict(f"is of another bundle named {name} {version}")
        if weights != self._weights:
            raise StateConflict(
                f"is of {WEIGHTS[weights]} weights; {WEIGHTS[self._weights]} ones serve"
            )
        return State(steps, packed)


def _id(key: bytes) -> bytes:
    """Tells keys apart, and nothing about them."""
    return hashlib.sha256(b"unrolled state key " + key).digest()[:4]


def _bound(key: bytes, owner: str) -> bytes:
    """The key of an owner's tokens."""
    if not owner:
        return key
    return hmac.digest(key, b"unrolled owner " + owner.encode(), "sha256")


def _decode(token: str) -> bytes:
    """The bytes of a token; empty where it is none. One text for the same bytes."""
    if len(token) > LONGEST:
        return b""
    try:
        plain = token.encode("ascii").translate(_PLAIN)
        data = binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        return b""
    again = binascii.b2a_base64(data, newline=False).rstrip(b"=")
    return data if again == plain else b""
