"""State tokens: what is signed comes back, what was changed never does, and what a
caller sends is never repeated."""

import base64
import binascii
import hashlib
import hmac
import logging
import re
import string
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from service import __main__ as main
from service.errors import MAX_ERRORS, InvalidState, StateConflict
from service.registry import state_tokens
from service.registry.state_tokens import INITIAL_STATE, SigningKeys, State, TokenSigner
from service.settings import Settings, SettingsError, load
from tests.support.bundles import make_metadata

KEY, OTHER = b"a key of the tests", b"another key of the tests"
DIGEST = hashlib.sha256(b"a bundle").hexdigest()
LETTERS = string.ascii_letters + string.digits + "-_"  # of RFC 4648, section 5
# Format, key, weights, steps, digest, version and length of the name: as documented.
HEAD = struct.Struct("<B 4s B Q 32s I B")
SIZES = st.integers(1, 40)
STEPS = st.integers(0, 2**64 - 1)


def metadata_of(size=3, **changes):
    """A network with so many numbers in its state."""
    return make_metadata(hidden=size, state_size=size, **changes)


def tokens(*keys, size=3, digest=DIGEST, precision="float32", **changes):
    """Those of a service with these keys."""
    made = SigningKeys(list(keys or [KEY]))
    return TokenSigner(made, metadata_of(size, **changes), digest, precision)


def state_of(rng, size=3):
    return State(int(rng.integers(2**40)), rng.bytes(4 * size))


def decoded(token):
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def resigned(token, change, key=KEY):
    """The token of other content, signed as only those can who have the key."""
    content = bytearray(decoded(token)[:-32])
    change(content)
    return encoded(bytes(content) + hmac.digest(key, bytes(content), "sha256"))


def refusal(made, token, kind=InvalidState):
    """What the caller is told of a token."""
    with pytest.raises(kind) as caught:
        made.verify(token, "states[4]")
    error = caught.value
    assert type(error) is kind
    assert [fault.path for fault in error.errors] == ["states[4]"]
    assert error.detail == f"states[4] {error.errors[0].message}"
    return error.detail


def assert_not_repeated(token, told):
    """Nothing of a token stands in what is told of it."""
    pieces = {token[at : at + 6] for at in range(len(token) - 5)}
    assert not any(piece in told for piece in pieces)


class TestRoundTrip:
    @settings(max_examples=300)
    @given(SIZES, STEPS, st.data())
    def test_any_state(self, size, steps, data):
        """Whatever the state is, it comes back bit by bit, with its steps."""
        packed = data.draw(st.binary(min_size=4 * size, max_size=4 * size))
        made = tokens(size=size)
        assert made.verify(made.sign(State(steps, packed))) == State(steps, packed)

    def test_odd_numbers(self):
        """So do the ends of float32, and both zeros."""
        limits = np.finfo(np.float32)
        odd = [0.0, -0.0, limits.max, limits.min, limits.smallest_subnormal]
        packed = np.array(odd, np.float32).tobytes()
        made = tokens(size=5)
        assert made.verify(made.sign(State(1, packed))).packed == packed

    @settings(max_examples=100)
    @given(SIZES, st.lists(STEPS, min_size=2, max_size=6), st.data())
    def test_one_size(self, size, steps, data):
        """All tokens of a model have one length, of letters that need no escape in an
        address."""
        made, lengths = tokens(size=size), set()
        for number in steps:
            packed = data.draw(st.binary(min_size=4 * size, max_size=4 * size))
            token = made.sign(State(number, packed))
            assert re.fullmatch("[A-Za-z0-9_-]+", token)
            lengths.add(len(token))
        count = HEAD.size + len("made") + 4 * size + 32
        assert lengths == {-(-4 * count // 3)}

    def test_layout(self):
        """A token is what is documented, signed by HMAC-SHA256: another program with
        the key can read it."""
        state = State(70_000, np.array([1, -2, 0.5], np.float32).tobytes())
        data = decoded(tokens(version="123456789").sign(state))
        content, mac = data[:-32], data[-32:]
        assert mac == hmac.new(KEY, content, hashlib.sha256).digest()
        made, _, weights, steps, digest, version, length = HEAD.unpack_from(content)
        assert (made, weights, steps, version) == (1, 0, 70_000, 123_456_789)
        assert digest.hex() == DIGEST
        assert content[HEAD.size :][:length] == b"made"
        given = np.frombuffer(content[HEAD.size + length :], "<f4")
        assert given.tolist() == [1, -2, 0.5]

    def test_nothing_is_stored(self):
        """Another service with the same key and bundle reads it."""
        state = state_of(np.random.default_rng(0))
        assert tokens().verify(tokens().sign(state)) == state

    def test_longest_name(self):
        """A bundle with the longest name and version has tokens too."""
        longest = {"name": "n" * 64, "version": "9" * 9}
        state = state_of(np.random.default_rng(0))
        assert tokens(**longest).verify(tokens(**longest).sign(state)) == state


@pytest.fixture(scope="module")
def token():
    return tokens().sign(state_of(np.random.default_rng(1)))


@pytest.fixture(scope="module")
def reasons(token):
    """All that is ever told of a token that is none, or not ours."""

    def of_tomorrow(content):
        content[0] = 2

    told = {
        refusal(tokens(), ""),
        refusal(tokens(), resigned(token, of_tomorrow)),
        refusal(tokens(OTHER), token),
        refusal(
            tokens(), ("A" if token[-2] != "A" else "B").join((token[:-2], token[-1]))
        ),
    }
    assert len(told) == 4
    for text in told:
        assert_not_repeated(token, text)
    return told


class TestChanged:
    def test_any_letter(self, token):
        """With any of its letters changed to any other it is refused."""
        made = tokens()
        for at, letter in enumerate(token):
            for other in LETTERS + "+/=. \n\0é":
                if other != letter:
                    refusal(made, token[:at] + other + token[at + 1 :])

    def test_any_bit(self, token):
        """With any bit changed it is refused, the signature's own too."""
        made, data = tokens(), decoded(token)
        for at in range(len(data)):
            for bit in range(8):
                changed = bytearray(data)
                changed[at] ^= 1 << bit
                refusal(made, encoded(bytes(changed)))

    def test_cut_and_longer(self, token):
        """Cut at either end, or with more at either, it is refused."""
        made = tokens()
        for at in range(len(token)):
            refusal(made, token[:at])
            refusal(made, token[at + 1 :])
        for more in ("A", "AA", "AAA", "AAAA", token, "=", "==", "===", "\n", " "):
            refusal(made, token + more)
            refusal(made, more + token)

    def test_within(self, token):
        """A space or a line break within it, which some decoders skip, is refused."""
        made = tokens()
        for at in range(len(token) + 1):
            for more in " \n\r\t=":
                refusal(made, token[:at] + more + token[at:])

    @pytest.mark.parametrize("name", ["a", "ab", "abc"])
    def test_one_text(self, name):
        """The same bytes in another writing are refused: padded, in the letters of
        plain base64, or with other bits at the end that count for nothing."""
        made, rng = tokens(name=name), np.random.default_rng(2)
        written = set()
        for _ in range(40):
            token = made.sign(state_of(rng))
            data = decoded(token)
            others = {
                base64.urlsafe_b64encode(data).decode(),
                base64.b64encode(data).decode(),
                base64.b64encode(data).decode().rstrip("="),
                *(token[:-1] + letter for letter in LETTERS),
            }
            for other in others - {token}:
                with_them = binascii.a2b_base64(
                    other.replace("-", "+").replace("_", "/") + "=="
                )
                written.add(with_them == data)
                refusal(made, other)
            assert made.verify(token).packed
        assert True in written  # other writings have been met

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("", id="empty"),
            pytest.param("c4n4ry-c4n4ry", id="word"),
            pytest.param("A" * 300, id="zeros"),
            pytest.param("A" * 2**20, id="megabyte"),
            pytest.param("é" * 150, id="latin"),
            pytest.param("\U0001f980" * 150, id="astral"),
            pytest.param("\ud800" * 150, id="surrogates"),
            pytest.param("\0" * 150, id="nul"),
            pytest.param("=" * 150, id="padding-only"),
            pytest.param("null", id="null"),
        ],
    )
    def test_no_token(self, reasons, text):
        """What is no token at all is refused, in words that are not the caller's."""
        assert refusal(tokens(), text) in reasons

    @settings(max_examples=500)
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
        """So is whatever else a caller may send."""
        assert refusal(tokens(), text) in reasons

    def test_few_reasons(self, token, reasons):
        """However a token is changed, what is told is one of few reasons: nothing of
        the caller's shows in it."""
        made, rng, told = tokens(), np.random.default_rng(3), set()
        for _ in range(2000):
            data = bytearray(decoded(token))
            for at in rng.integers(0, len(data), rng.integers(1, 4)).tolist():
                data[at] = rng.integers(256)
            if bytes(data) != decoded(token):
                told.add(refusal(made, encoded(bytes(data))))
        assert told < reasons
        assert len(told) > 1

    def test_spliced(self):
        """Parts of two sound tokens make no sound one."""
        made, rng = tokens(), np.random.default_rng(4)
        one, other = (decoded(made.sign(state_of(rng))) for _ in range(2))
        for at in range(HEAD.size, len(one)):
            for mixed in (one[:at] + other[at:], other[:at] + one[at:]):
                if mixed not in (one, other):
                    refusal(made, encoded(mixed))

    def test_another_format(self, token):
        """One of a format to come is refused as that, though it is signed."""
        made = tokens()
        for number in (0, 2, 255):

            def change(content, number=number):
                content[0] = number

            assert "format" in refusal(made, resigned(token, change))
        assert made.verify(resigned(token, lambda content: None))

    def test_another_key(self, token):
        """One that is signed with another key is refused, also where it says that it
        is with ours."""
        assert "another key" in refusal(tokens(OTHER), token)
        theirs = tokens(OTHER).sign(state_of(np.random.default_rng(5)))

        def pretend(content):
            content[1:5] = SigningKeys([KEY]).id

        assert "changed" in refusal(tokens(), resigned(theirs, pretend, OTHER))


class TestRotation:
    def test_first_signs(self):
        """Of two keys the first signs and both verify; who has only one of them reads
        what that one has signed."""
        state = state_of(np.random.default_rng(6))
        old, both, new = tokens(OTHER), tokens(KEY, OTHER), tokens(KEY)
        assert both.verify(old.sign(state)) == state
        assert both.verify(new.sign(state)) == state
        assert new.verify(both.sign(state)) == state
        refusal(old, both.sign(state))
        refusal(new, old.sign(state))

    def test_from_the_setting(self):
        """The setting's keys stand between commas, with spaces or without."""
        state = state_of(np.random.default_rng(7))
        texts = {
            "one": f"{KEY.decode()}",
            "two": f"{KEY.decode()},{OTHER.decode()}",
            "spaced": f" {KEY.decode()} , {OTHER.decode()} ",
            "swapped": f"{OTHER.decode()},{KEY.decode()}",
        }
        made = {
            name: TokenSigner(
                state_tokens.load_keys(Settings(state_key=text)),
                metadata_of(),
                DIGEST,
                "float32",
            )
            for name, text in texts.items()
        }
        for name in ("one", "two", "spaced"):
            assert made["one"].verify(made[name].sign(state)) == state
        assert made["spaced"].verify(made["swapped"].sign(state)) == state
        refusal(made["one"], made["swapped"].sign(state))


# What serves in place of the network that signed, and what is said of it.
CONFLICTS = [
    pytest.param({"name": "there"}, "belongs to the model made, not there", id="model"),
    pytest.param(
        {"version": "12"}, "belongs to version 1 of made, not 12", id="version"
    ),
    pytest.param(
        {"digest": "0" * 64}, "belongs to another bundle named made 1", id="digest"
    ),
    pytest.param({"size": 4}, "belongs to another bundle named made 1", id="size"),
    pytest.param(
        {"precision": "int8"}, "belongs to float32 weights, not int8", id="precision"
    ),
]


class TestConflicts:
    @pytest.mark.parametrize(("changes", "reason"), CONFLICTS)
    def test_refused(self, token, changes, reason):
        """A token of another model, version, bundle or precision is a conflict, and
        the reason is told; in the other direction too."""
        rng, other = np.random.default_rng(8), tokens(**changes)
        told = refusal(other, token, StateConflict)
        assert told == f"states[4] {reason}"
        assert_not_repeated(token, told)
        size = changes.get("size", 3)
        refusal(tokens(), other.sign(state_of(rng, size)), StateConflict)

    def test_status(self, token):
        """A conflict is 409, since it may pass elsewhere; a bad token is 422."""
        for made, text, status, slug in (
            (tokens(name="there"), token, 409, "state-conflict"),
            (tokens(), token[:-1], 422, "invalid-state"),
        ):
            with pytest.raises((StateConflict, InvalidState)) as caught:
                made.verify(text)
            assert (caught.value.status, caught.value.slug) == (status, slug)


class TestAll:
    def test_states(self, token):
        """The states come in the order of the request; null begins."""
        made, rng = tokens(), np.random.default_rng(9)
        states = [state_of(rng) for _ in range(3)]
        first, second, third = map(made.sign, states)
        given = made.verify_all([first, None, second, None, third])
        assert given == [states[0], INITIAL_STATE, states[1], INITIAL_STATE, states[2]]
        assert made.verify_all([]) == []
        assert (INITIAL_STATE.steps, INITIAL_STATE.packed) == (0, b"")

    def test_each_is_named(self, token):
        """Each that is at fault is named, with its own reason; that one is no token
        counts more than that another is in conflict."""
        made = tokens()
        other = tokens(name="there").sign(state_of(np.random.default_rng(10)))
        given = [other, token, "c4n4ry", None, token[:-1]]
        with pytest.raises(InvalidState) as caught:
            made.verify_all(given)
        faults = {fault.path: fault.message for fault in caught.value.errors}
        assert list(faults) == ["states[0]", "states[2]", "states[4]"]
        assert faults["states[0]"] == "belongs to the model there, not made"
        assert faults["states[2]"] == "is not a state token"
        assert caught.value.detail == "states[2] is not a state token"
        with pytest.raises(StateConflict) as caught:
            made.verify_all([token, other])
        assert [fault.path for fault in caught.value.errors] == ["states[1]"]

    def test_many(self):
        """Of very many at fault the first are told, and how many there were."""
        with pytest.raises(InvalidState) as caught:
            tokens().verify_all(["c4n4ry"] * 250)
        text = caught.value.body("id").decode()
        assert text.count("states[") == MAX_ERRORS + 1  # and in the detail
        assert '"error_count":250' in text


class TestKeys:
    def test_random(self, caplog):
        """Without a setting the key is random, each time another, and a warning says
        what that means and how to change it."""
        with caplog.at_level(logging.WARNING):
            first, second = (state_tokens.load_keys(Settings()) for _ in range(2))
        assert len(first.signing) >= 32
        assert first.signing != second.signing
        told = [
            record for record in caplog.records if record.name.startswith("service")
        ]
        assert [record.levelname for record in told] == ["WARNING"] * 2
        assert "UNROLLED_STATE_KEY is not set" in told[0].getMessage()

    def test_set(self, caplog):
        """With one there is no warning, and the key is the setting's."""
        with caplog.at_level(logging.DEBUG):
            made = state_tokens.load_keys(Settings(state_key=KEY.decode()))
        assert made.signing == KEY
        assert caplog.records == []

    def test_told_apart(self):
        """What tells keys apart in a token is another for each."""
        ids = {
            SigningKeys([b"a key of the tests %d" % number]).id for number in range(200)
        }
        assert len(ids) == 200


class TestSecret:
    SECRET = "c4n4ry-key-c4n4ry-key"

    def test_settings(self):
        """The key stands in no text that is made of the settings, nor in what a
        worker is told."""
        made = Settings(state_key=f"{self.SECRET},{self.SECRET}-old")
        for text in (repr(made), str(made), f"{made}", made.model_dump_json()):
            assert "c4n4ry" not in text
        assert "c4n4ry" not in str(made.model_dump())

    def test_command(self, monkeypatch):
        """Nor in what `settings` prints, though it says that there is one."""
        monkeypatch.setenv("UNROLLED_STATE_KEY", self.SECRET)
        result = CliRunner().invoke(main.app, ["settings"])
        assert result.exit_code == 0
        assert "UNROLLED_STATE_KEY=***" in result.output
        assert "c4n4ry" not in result.output

    @pytest.mark.parametrize(
        "text", ["c4n4ry", f"{SECRET},c4n4ry", f"{SECRET},", f"{SECRET},,{SECRET}"]
    )
    def test_refused(self, monkeypatch, text):
        """Nor in what is said of one that is too short; a forgotten key after a comma
        is one."""
        monkeypatch.setenv("UNROLLED_STATE_KEY", text)
        with pytest.raises(SettingsError, match=r"UNROLLED_STATE_KEY: .*16") as caught:
            load()
        assert "c4n4ry" not in str(caught.value)
        monkeypatch.delenv("UNROLLED_STATE_KEY")
        result = CliRunner().invoke(main.app, ["serve", "--state-key", text])
        assert result.exit_code == 2
        assert "UNROLLED_STATE_KEY" in result.output
        assert "c4n4ry" not in result.output

    def test_objects(self):
        """Nor in the text of what holds it."""
        made = tokens(self.SECRET.encode())
        for text in (repr(made), repr(SigningKeys([self.SECRET.encode()]))):
            assert "c4n4ry" not in text
