"""State tokens: a sequence's state, signed, for the client to keep. Nothing is stored.

Any service with the same key and bundle can continue from a token, also after a restart.
A token is base64url of

    format 1 | key 4 | weights 1 | steps 8 | bundle's digest 32 | version 4
    | length of the name 1 | name | state 4 * S (float32) | HMAC-SHA256 32

and, of a model that reads times, 8 bytes with the last one before the HMAC,
in bytes (little-endian), so all tokens of a model have one length. The HMAC
(RFC 2104) covers everything before it. If API keys are set, the HMAC's key depends on
the owner of the client's: no other owner can continue from the token.
"""

import binascii
import hashlib
import hmac
import logging
import secrets
import struct
from typing import NamedTuple

from model.bundle.metadata import Metadata, Records
from service.errors import FieldError, InvalidState, StateConflict
from service.settings import PREFIX, Settings

log = logging.getLogger(__name__)

FORMAT = 1
HEAD = struct.Struct("<B4sBQ32sIB")
TIME = struct.Struct("<q")
MAC = 32
MAX_CHARACTERS = 2**20  # a longer text is not decoded
WEIGHTS = ("float32", "int8")
_URL = bytes.maketrans(b"+/", b"-_")
_STANDARD = bytes.maketrans(b"-_+/", b"+/??")  # base64's own + and / are refused


class SigningKeys:
    """The keys of the setting STATE_KEY: the first one signs, all verify."""

    def __init__(self, keys: list[bytes]):
        self.signing = keys[0]
        self.by_id = {_id(key): key for key in keys}
        self.id = _id(self.signing)


def load_keys(settings: Settings) -> SigningKeys:
    """The setting's keys; without any a random one, which the log says."""
    keys = settings.state_key.get_secret_value()
    if keys:
        return SigningKeys([key.strip().encode() for key in keys.split(",")])
    log.info(
        "%sSTATE_KEY is not set: state tokens become invalid when this process ends",
        PREFIX,
    )
    return SigningKeys([secrets.token_bytes(32)])


class State(NamedTuple):
    """A network's state within a sequence."""

    steps: int  # so far
    packed: bytes  # [S] float32; empty at the start
    time: int | None = None  # of the last record, in microseconds since 1970

    def after(self, steps: int, packed: bytes, time: int | None = None) -> "State":
        """The state so many steps later."""
        return State(self.steps + steps, packed, time)


INITIAL_STATE = State(0, b"")


class TokenSigner:
    """Signs and verifies the tokens of one model."""

    def __init__(
        self, keys: SigningKeys, metadata: Metadata, digest: str, precision: str
    ):
        """
        Args:
            digest: SHA-256 of the bundle, in hexadecimal digits.
            precision: of the weights in use.
        """
        self._keys, self._metadata = keys, metadata
        self._weights = WEIGHTS.index(precision)
        self._digest = bytes.fromhex(digest)
        self._size = 4 * metadata.state_size
        about = metadata.input
        self._timed = isinstance(about, Records) and "time" in about.kinds

    def sign(self, state: State, owner: str = "") -> str:
        """The token of a state.

        Args:
            owner: of the API key that may continue from it; empty without keys.
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
        if self._timed:
            content += TIME.pack(state.time or 0)
        mac = hmac.digest(_owner_key(self._keys.signing, owner), content, "sha256")
        encoded = binascii.b2a_base64(content + mac, newline=False)
        return encoded.translate(_URL, b"=").decode()

    def verify_all(self, tokens: list[str | None], owner: str = "") -> list[State]:
        """The states of a request's tokens; the initial state for None.

        Raises:
            InvalidState, StateConflict: see `verify`; names each token.
        """
        states, errors = [], []
        for index, token in enumerate(tokens):
            try:
                if token is None:
                    states.append(INITIAL_STATE)
                else:
                    states.append(self.verify(token, f"states[{index}]", owner))
            except (InvalidState, StateConflict) as error:
                errors.append(error)
        if errors:
            first = next((e for e in errors if isinstance(e, InvalidState)), errors[0])
            raise type(first)(
                first.detail, [e for error in errors for e in error.errors]
            )
        return states

    def verify(self, token: str, path: str = "state", owner: str = "") -> State:
        """The state of a token.

        Args:
            path: of the field that holds it.
            owner: of the client's API key.

        Raises:
            InvalidState: not a token, changed, signed with another key, or issued to
                another owner.
            StateConflict: issued for another model, version, bundle or precision.
        """
        try:
            return self._open(token, owner)
        except (InvalidState, StateConflict) as error:
            field = FieldError(path, error.detail)
            raise type(error)(f"{path} {error.detail}", [field]) from None

    def _open(self, token: str, owner: str) -> State:
        data = _decode(token)
        if len(data) <= HEAD.size + MAC:
            raise InvalidState("is not a state token")
        token_format, key, weights, steps, digest, version, length = HEAD.unpack_from(
            data
        )
        if token_format != FORMAT:
            raise InvalidState("has a format that this service does not know")
        if key not in self._keys.by_id:
            raise InvalidState("was signed with another key, or changed")
        content = data[:-MAC]
        mac = hmac.digest(_owner_key(self._keys.by_id[key], owner), content, "sha256")
        if not hmac.compare_digest(mac, data[-MAC:]):
            other = ", or issued to another API key" if owner else ""
            raise InvalidState(f"was changed{other}")
        # From here on the content is what a service with this key has written.
        name = content[HEAD.size : HEAD.size + length].decode()
        metadata = self._metadata
        if name != metadata.name:
            raise StateConflict(f"belongs to the model {name}, not {metadata.name}")
        if version != int(metadata.version):
            raise StateConflict(
                f"belongs to version {version} of {name}, not {metadata.version}"
            )
        packed, time = content[HEAD.size + length :], None
        if self._timed and len(packed) == self._size + TIME.size:
            (time,) = TIME.unpack(packed[self._size :])
            packed = packed[: self._size]
        if digest != self._digest or len(packed) != self._size:
            raise StateConflict(f"belongs to another bundle named {name} {version}")
        if weights != self._weights:
            raise StateConflict(
                f"belongs to {WEIGHTS[weights]} weights, not {WEIGHTS[self._weights]}"
            )
        return State(steps, packed, time)


def _id(key: bytes) -> bytes:
    """A key's identifier, which reveals nothing of the key."""
    return hashlib.sha256(b"unrolled state key " + key).digest()[:4]


def _owner_key(key: bytes, owner: str) -> bytes:
    """The key of an owner's tokens."""
    if not owner:
        return key
    return hmac.digest(key, b"unrolled owner " + owner.encode(), "sha256")


def _decode(token: str) -> bytes:
    """The bytes of a token; empty if it is none. Each has only one valid text."""
    if len(token) > MAX_CHARACTERS:
        return b""
    try:
        plain = token.encode("ascii").translate(_STANDARD)
        data = binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        return b""
    again = binascii.b2a_base64(data, newline=False).rstrip(b"=")
    return data if again == plain else b""
