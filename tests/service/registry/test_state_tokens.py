"""State tokens: signed states are verified, changed ones are refused, and errors repeat
nothing of a token."""

import base64
import binascii
import hashlib
import hmac
import re
import string
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import MAX_ERRORS, InvalidState, StateConflict
from service.registry import state_tokens
from service.registry.state_tokens import INITIAL_STATE, SigningKeys, State, TokenSigner
from service.settings import Settings
from tests.support.bundles import make_metadata

KEY, OTHER = b"a key of the tests", b"another key of the tests"
DIGEST = hashlib.sha256(b"a bundle").hexdigest()
LETTERS = string.ascii_letters + string.digits + "-_"  # of RFC 4648, section 5
# Format, key, weights, steps, digest, version and length of the name: as documented.
HEAD = struct.Struct("<B 4s B Q 32s I B")
SIZES = st.integers(1, 40)
STEPS = st.integers(0, 2**64 - 1)


def metadata_of(size=3, **changes):
    """The metadata of a network with a state of this size."""
    return make_metadata(hidden=size, state_size=size, **changes)


def signer(*keys, size=3, digest=DIGEST, precision="float32", **changes):
    """The signer of a service with these keys."""
    signing_keys = SigningKeys(list(keys or [KEY]))
    return TokenSigner(signing_keys, metadata_of(size, **changes), digest, precision)


def state_of(rng, size=3):
    return State(int(rng.integers(2**40)), rng.bytes(4 * size))


def decoded(token):
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def resigned(token, change, key=KEY):
    """The token with other content, signed with the key."""
    content = bytearray(decoded(token)[:-32])
    change(content)
    return encoded(bytes(content) + hmac.digest(key, bytes(content), "sha256"))


def refused(tokens, token, kind=InvalidState):
    """The error of a token."""
    with pytest.raises(kind) as caught:
        tokens.verify(token, "states[4]")
    error = caught.value
    assert type(error) is kind
    assert [e.path for e in error.errors] == ["states[4]"]
    assert error.detail == f"states[4] {error.errors[0].message}"
    return error.detail


def assert_not_repeated(token, message):
    """Check that an error repeats nothing of its token."""
    pieces = {token[at : at + 6] for at in range(len(token) - 5)}
    assert not any(piece in message for piece in pieces)


class TestRoundTrip:
    @given(SIZES, STEPS, st.data())
    def test_any_state(self, size, steps, data):
        """Any state is returned bit by bit, with its steps."""
        packed = data.draw(st.binary(min_size=4 * size, max_size=4 * size))
        tokens = signer(size=size)
        assert tokens.verify(tokens.sign(State(steps, packed))) == State(steps, packed)

    def test_odd_numbers(self):
        """So are the limits of float32, and both zeros."""
        limits = np.finfo(np.float32)
        odd = [0.0, -0.0, limits.max, limits.min, limits.smallest_subnormal]
        packed = np.array(odd, np.float32).tobytes()
        tokens = signer(size=5)
        assert tokens.verify(tokens.sign(State(1, packed))).packed == packed

    @given(SIZES, st.lists(STEPS, min_size=2, max_size=6), st.data())
    def test_one_size(self, size, steps, data):
        """All tokens of a model have the same length, and need no escape in a URL."""
        tokens, lengths = signer(size=size), set()
        for number in steps:
            packed = data.draw(st.binary(min_size=4 * size, max_size=4 * size))
            token = tokens.sign(State(number, packed))
            assert re.fullmatch("[A-Za-z0-9_-]+", token)
            lengths.add(len(token))
        count = HEAD.size + len("made") + 4 * size + 32
        assert lengths == {-(-4 * count // 3)}

    def test_layout(self):
        """A token has the documented layout, signed with HMAC-SHA256: another program with
        the key can read it."""
        state = State(70_000, np.array([1, -2, 0.5], np.float32).tobytes())
        data = decoded(signer(version="123456789").sign(state))
        content, mac = data[:-32], data[-32:]
        assert mac == hmac.new(KEY, content, hashlib.sha256).digest()
        tokens, _, weights, steps, digest, version, length = HEAD.unpack_from(content)
        assert (tokens, weights, steps, version) == (1, 0, 70_000, 123_456_789)
        assert digest.hex() == DIGEST
        assert content[HEAD.size :][:length] == b"made"
        numbers = np.frombuffer(content[HEAD.size + length :], "<f4")
        assert numbers.tolist() == [1, -2, 0.5]

    def test_nothing_is_stored(self):
        """Another service with the same key and bundle verifies it."""
        state = state_of(np.random.default_rng(0))
        assert signer().verify(signer().sign(state)) == state

    def test_longest_name(self):
        """The longest name and version have tokens too."""
        longest = {"name": "n" * 64, "version": "9" * 9}
        state = state_of(np.random.default_rng(0))
        assert signer(**longest).verify(signer(**longest).sign(state)) == state


@pytest.fixture(scope="module")
def token():
    return signer().sign(state_of(np.random.default_rng(1)))


@pytest.fixture(scope="module")
def reasons(token):
    """All errors of a text that is not a token of this service."""

    def next_format(content):
        content[0] = 2

    last = "A" if token[-2] != "A" else "B"
    messages = {
        refused(signer(), ""),
        refused(signer(), resigned(token, next_format)),
        refused(signer(OTHER), token),
        refused(signer(), token[:-2] + last + token[-1]),
    }
    assert len(messages) == 4
    for message in messages:
        assert_not_repeated(token, message)
    return messages


class TestChanged:
    def test_any_letter(self, token):
        """A token with any changed letter is refused."""
        tokens = signer()
        for at, letter in enumerate(token):
            for other in LETTERS + "+/=. \n\0é":
                if other != letter:
                    refused(tokens, token[:at] + other + token[at + 1 :])

    def test_any_bit(self, token, reasons):
        """A token with any changed bit is refused, also in its signature; the error is one
        of a few, with nothing of the client's."""
        tokens, data, messages = signer(), decoded(token), set()
        for at in range(len(data)):
            for bit in range(8):
                changed = bytearray(data)
                changed[at] ^= 1 << bit
                messages.add(refused(tokens, encoded(bytes(changed))))
        assert messages < reasons
        assert len(messages) > 1

    def test_cut_and_longer(self, token):
        """A token that is shorter or longer at either end is refused."""
        tokens = signer()
        for at in range(len(token)):
            refused(tokens, token[:at])
            refused(tokens, token[at + 1 :])
        for more in ("A", "AA", "AAA", "AAAA", token, "=", "==", "===", "\n", " "):
            refused(tokens, token + more)
            refused(tokens, more + token)

    def test_within(self, token):
        """A token with white space in it, which some decoders skip, is refused."""
        tokens = signer()
        for at in range(len(token) + 1):
            for more in " \n\r\t=":
                refused(tokens, token[:at] + more + token[at:])

    @pytest.mark.parametrize("name", ["a", "ab", "abc"])
    def test_one_encoding(self, name):
        """The same bytes in another encoding are refused: padded, in standard base64, or
        with other unused bits at the end."""
        tokens, rng = signer(name=name), np.random.default_rng(2)
        same = set()
        for _ in range(40):
            token = tokens.sign(state_of(rng))
            data = decoded(token)
            others = {
                base64.urlsafe_b64encode(data).decode(),
                base64.b64encode(data).decode(),
                base64.b64encode(data).decode().rstrip("="),
                *(token[:-1] + letter for letter in LETTERS),
            }
            for other in others - {token}:
                bytes_of_other = binascii.a2b_base64(
                    other.replace("-", "+").replace("_", "/") + "=="
                )
                same.add(bytes_of_other == data)
                refused(tokens, other)
            assert tokens.verify(token).packed
        assert True in same  # there were other encodings

    def test_no_token(self, reasons):
        """A text that is not a token is refused, with a fixed error."""
        for text in (
            *("", "s3cr3t-s3cr3t", "A" * 300, "A" * 2**20, "é" * 150),
            *("\U0001f980" * 150, "\ud800" * 150, "\0" * 150, "=" * 150, "null"),
        ):
            assert refused(signer(), text) in reasons

    @given(
        st.one_of(
            st.text(),
            st.text(LETTERS, max_size=300),
            st.binary(max_size=300).map(encoded),
            st.binary(min_size=60, max_size=300).map(
                lambda data: encoded(b"\1" + SigningKeys([KEY]).id + data)
            ),
        )
    )
    def test_random(self, reasons, text):
        """So is any other text."""
        assert refused(signer(), text) in reasons

    def test_spliced(self, reasons):
        """Parts of two valid tokens are not a valid one."""
        tokens, rng = signer(), np.random.default_rng(4)
        first, second = (decoded(tokens.sign(state_of(rng))) for _ in range(2))
        for at in range(HEAD.size, len(first)):
            for mixed in (first[:at] + second[at:], second[:at] + first[at:]):
                if mixed not in (first, second):
                    assert refused(tokens, encoded(mixed)) in reasons

    def test_another_format(self, token):
        """Another format is refused as such, even if it is signed."""
        tokens = signer()
        for number in (0, 2, 255):

            def change(content, number=number):
                content[0] = number

            assert "format" in refused(tokens, resigned(token, change))
        assert tokens.verify(resigned(token, lambda content: None))

    def test_another_key(self, token):
        """A token signed with another key is refused, even if it claims to be signed with
        this one."""
        assert "another key" in refused(signer(OTHER), token)
        theirs = signer(OTHER).sign(state_of(np.random.default_rng(5)))

        def pretend(content):
            content[1:5] = SigningKeys([KEY]).id

        assert "changed" in refused(signer(), resigned(theirs, pretend, OTHER))


class TestRotation:
    def test_first_signs(self):
        """Of two keys the first signs and both verify."""
        state = state_of(np.random.default_rng(6))
        old, both, new = signer(OTHER), signer(KEY, OTHER), signer(KEY)
        assert both.verify(old.sign(state)) == state
        assert both.verify(new.sign(state)) == state
        assert new.verify(both.sign(state)) == state
        refused(old, both.sign(state))
        refused(new, old.sign(state))

    def test_setting(self):
        """The setting's keys are separated by commas, with spaces or without."""
        state = state_of(np.random.default_rng(7))
        texts = {
            "one": f"{KEY.decode()}",
            "two": f"{KEY.decode()},{OTHER.decode()}",
            "spaced": f" {KEY.decode()} , {OTHER.decode()} ",
            "swapped": f"{OTHER.decode()},{KEY.decode()}",
        }
        signers = {
            name: TokenSigner(
                state_tokens.load_keys(Settings(state_key=text)),
                metadata_of(),
                DIGEST,
                "float32",
            )
            for name, text in texts.items()
        }
        for name in ("one", "two", "spaced"):
            assert signers["one"].verify(signers[name].sign(state)) == state
        assert signers["spaced"].verify(signers["swapped"].sign(state)) == state
        refused(signers["one"], signers["swapped"].sign(state))


# Another model, and the error of a token for the first one.
CONFLICTS = [
    ({"name": "there"}, "belongs to the model made, not there"),
    ({"version": "12"}, "belongs to version 1 of made, not 12"),
    ({"digest": "0" * 64}, "belongs to another bundle named made 1"),
    ({"size": 4}, "belongs to another bundle named made 1"),
    ({"precision": "int8"}, "belongs to float32 weights, not int8"),
]


class TestConflicts:
    @pytest.mark.parametrize(("changes", "reason"), CONFLICTS)
    def test_refused(self, token, changes, reason):
        """A token of another model, version, bundle or precision is a conflict with a
        reason, in both directions."""
        rng, other = np.random.default_rng(8), signer(**changes)
        message = refused(other, token, StateConflict)
        assert message == f"states[4] {reason}"
        assert_not_repeated(token, message)
        size = changes.get("size", 3)
        refused(signer(), other.sign(state_of(rng, size)), StateConflict)

    def test_status(self, token):
        """A conflict is 409, since another service may accept the token; an invalid token is
        422."""
        for tokens, text, status, slug in (
            (signer(name="there"), token, 409, "state-conflict"),
            (signer(), token[:-1], 422, "invalid-state"),
        ):
            with pytest.raises((StateConflict, InvalidState)) as caught:
                tokens.verify(text)
            assert (caught.value.status, caught.value.slug) == (status, slug)


class TestAll:
    def test_states(self, token):
        """The states are in the order of the request; null is the initial state."""
        tokens, rng = signer(), np.random.default_rng(9)
        states = [state_of(rng) for _ in range(3)]
        first, second, third = map(tokens.sign, states)
        verified = tokens.verify_all([first, None, second, None, third])
        assert verified == [
            states[0],
            INITIAL_STATE,
            states[1],
            INITIAL_STATE,
            states[2],
        ]
        assert tokens.verify_all([]) == []
        assert (INITIAL_STATE.steps, INITIAL_STATE.packed) == (0, b"")

    def test_each_is_named(self, token):
        """Each wrong token is named with its reason; an invalid one outweighs a conflict."""
        tokens = signer()
        other = signer(name="there").sign(state_of(np.random.default_rng(10)))
        all_tokens = [other, token, "s3cr3t", None, token[:-1]]
        with pytest.raises(InvalidState) as caught:
            tokens.verify_all(all_tokens)
        messages = {e.path: e.message for e in caught.value.errors}
        assert list(messages) == ["states[0]", "states[2]", "states[4]"]
        assert messages["states[0]"] == "belongs to the model there, not made"
        assert messages["states[2]"] == "is not a state token"
        assert caught.value.detail == "states[2] is not a state token"
        with pytest.raises(StateConflict) as caught:
            tokens.verify_all([token, other])
        assert [e.path for e in caught.value.errors] == ["states[1]"]

    def test_many(self):
        """Of many wrong tokens the first are listed, and all are counted."""
        with pytest.raises(InvalidState) as caught:
            signer().verify_all(["s3cr3t"] * 250)
        text = caught.value.body("id").decode()
        assert text.count("states[") == MAX_ERRORS + 1  # and in the detail
        assert '"error_count":250' in text
