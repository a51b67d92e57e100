"""Messages between the serving process and its workers: complete and in order, however
the bytes are divided."""

import socket
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worker import protocol
from service.worker.protocol import (
    BatchReport,
    CancelJob,
    Channel,
    FromWorker,
    Job,
    JobFailure,
    JobResult,
    LoadModel,
    LoadResult,
    MessageDecoder,
    ToWorker,
)
from tests.support.servers import SECONDS

NUMBERS = st.integers(0, 2**40)
SECONDS_OF = st.floats(0, 1e9)
BYTES = st.binary(max_size=400)
TO_WORKER = st.one_of(
    st.builds(LoadModel, NUMBERS, st.text()),
    st.builds(Job, NUMBERS, NUMBERS, NUMBERS, BYTES, BYTES, st.booleans()),
    st.builds(Job, NUMBERS, NUMBERS, NUMBERS, BYTES),
    st.builds(CancelJob, NUMBERS),
)
FROM_WORKER = st.one_of(
    st.builds(LoadResult, NUMBERS, st.text(), st.text(), st.text(), st.text()),
    st.builds(JobResult, NUMBERS, SECONDS_OF, SECONDS_OF, BYTES, BYTES),
    st.builds(JobFailure, NUMBERS, st.text(), st.booleans(), st.booleans()),
    st.builds(BatchReport, NUMBERS, NUMBERS, NUMBERS, NUMBERS, SECONDS_OF, NUMBERS),
)


class TestDecoder:
    @pytest.mark.parametrize(
        ("kind", "strategy"), [(ToWorker, TO_WORKER), (FromWorker, FROM_WORKER)]
    )
    @given(st.data())
    def test_in_any_pieces(self, kind, strategy, data):
        """Lists of messages are decoded in order, however the bytes are divided, and
        nothing is kept of complete ones."""
        lists = data.draw(st.lists(st.lists(strategy, max_size=4), max_size=6))
        whole = b"".join(bytes(protocol.encode(messages)) for messages in lists)
        cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12))
        edges = [0, *sorted(cuts), len(whole)]
        decoder = MessageDecoder(kind)
        decoded = []
        for start, stop in pairwise(edges):
            decoded += decoder.feed(whole[start:stop])
        assert decoded == lists
        assert len(decoder._buffer) == 0

    def test_incomplete(self):
        """An incomplete list is not decoded yet."""
        decoder = MessageDecoder(ToWorker)
        whole = protocol.encode([CancelJob(1), CancelJob(2)])
        for byte in whole[:-1]:
            assert list(decoder.feed(bytes([byte]))) == []
        assert list(decoder.feed(bytes(whole[-1:]))) == [[CancelJob(1), CancelJob(2)]]


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel, socket.socket]]:
    """Two channels to each other, and the first one's socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours, FromWorker), Channel(theirs, ToWorker), ours


class TestChannel:
    def test_both_ways(self, pair):
        """Each side receives what the other sends."""
        ours, theirs, _ = pair
        ours.send([LoadModel(1, "here"), CancelJob(2)])
        assert theirs.receive() == [LoadModel(1, "here"), CancelJob(2)]
        theirs.send([JobFailure(2, "gone", dropped=True)])
        assert ours.receive() == [JobFailure(2, "gone", dropped=True)]

    def test_without_waiting(self, pair):
        """Without waiting, only the messages that have arrived are returned."""
        ours, theirs, _ = pair
        assert theirs.receive(wait=False) == []
        ours.send([CancelJob(1)])
        ours.send([CancelJob(2)])
        assert theirs.receive(wait=False) == [CancelJob(1), CancelJob(2)]
        assert theirs.receive(wait=False) == []

    def test_long_message(self, pair):
        """A message in many parts is returned when it is complete."""
        ours, theirs, _ = pair
        job = Job(1, 0, 1, bytes(range(256)) * 20_000)
        sending = threading.Thread(target=ours.send, args=([job],))
        sending.start()
        assert theirs.receive() == [job]
        sending.join(SECONDS)

    def test_many_at_once(self, pair):
        """Without waiting, all messages that have arrived are returned, also after
        the other side has closed."""
        ours, theirs, sock = pair
        sent = [Job(number, 0, 1, bytes(30_000)) for number in range(5)]
        ours.send(sent[:3])
        ours.send(sent[3:])
        sock.close()
        assert theirs.receive(wait=False) == sent
        with pytest.raises(EOFError):
            theirs.receive(wait=False)

    @pytest.mark.parametrize("wait", [True, False])
    def test_closed(self, pair, wait):
        """After the other side has closed, its messages come first, then EOFError."""
        ours, theirs, sock = pair
        ours.send([CancelJob(1)])
        sock.close()
        assert theirs.receive(wait=wait) == [CancelJob(1)]
        with pytest.raises(EOFError):
            theirs.receive(wait=wait)

    def test_closed_in_a_message(self, pair):
        """An incomplete message is never returned."""
        _, theirs, sock = pair
        sock.sendall(bytes(protocol.encode([CancelJob(1)])[:-1]))
        sock.close()
        with pytest.raises(EOFError):
            theirs.receive()
