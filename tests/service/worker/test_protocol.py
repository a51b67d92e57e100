"""What the serving process and its workers say: whole, in order, whatever the pieces
in which it comes."""

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


class TestIncoming:
    @pytest.mark.parametrize(
        ("kind", "strategy"), [(ToWorker, TO_WORKER), (FromWorker, FROM_WORKER)]
    )
    @given(st.data())
    def test_in_any_pieces(self, kind, strategy, data):
        """Lists of messages come out as they went in, in order, however the bytes
        are cut; and nothing is kept of those that are whole."""
        lists = data.draw(st.lists(st.lists(strategy, max_size=4), max_size=6))
        whole = b"".join(bytes(protocol.encode(some)) for some in lists)
        cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12))
        edges = [0, *sorted(cuts), len(whole)]
        incoming = MessageDecoder(kind)
        given = []
        for start, stop in pairwise(edges):
            given += incoming.feed(whole[start:stop])
        assert given == lists
        assert len(incoming._buffer) == 0

    def test_incomplete(self):
        """A list that is not whole yet is not given."""
        incoming = MessageDecoder(ToWorker)
        whole = protocol.encode([CancelJob(1), CancelJob(2)])
        for byte in whole[:-1]:
            assert list(incoming.feed(bytes([byte]))) == []
        assert list(incoming.feed(bytes(whole[-1:]))) == [[CancelJob(1), CancelJob(2)]]


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel, socket.socket]]:
    """Two channels to each other, and the first one's socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours, FromWorker), Channel(theirs, ToWorker), ours


class TestChannel:
    def test_both_ways(self, pair):
        """What one side sends the other receives."""
        ours, theirs, _ = pair
        ours.send([LoadModel(1, "here"), CancelJob(2)])
        assert theirs.receive() == [LoadModel(1, "here"), CancelJob(2)]
        theirs.send([JobFailure(2, "gone", dropped=True)])
        assert ours.receive() == [JobFailure(2, "gone", dropped=True)]

    def test_without_waiting(self, pair):
        """Without waiting, there may be nothing; and what is there is given."""
        ours, theirs, _ = pair
        assert theirs.receive(wait=False) == []
        ours.send([CancelJob(1)])
        ours.send([CancelJob(2)])
        assert theirs.receive(wait=False) == [CancelJob(1), CancelJob(2)]
        assert theirs.receive(wait=False) == []

    def test_larger_than_a_piece(self, pair):
        """A message of many pieces is waited for until it is whole."""
        ours, theirs, _ = pair
        job = Job(1, 0, 1, bytes(range(256)) * 20_000)
        sending = threading.Thread(target=ours.send, args=([job],))
        sending.start()
        assert theirs.receive() == [job]
        sending.join(SECONDS)

    def test_much_at_once(self, pair):
        """Without waiting, all that is there is given, and what has come before the
        other side went."""
        ours, theirs, sock = pair
        sent = [Job(number, 0, 1, bytes(30_000)) for number in range(5)]
        ours.send(sent[:3])
        ours.send(sent[3:])
        sock.close()
        assert theirs.receive(wait=False) == sent
        with pytest.raises(EOFError):
            theirs.receive(wait=False)

    @pytest.mark.parametrize("wait", [True, False])
    def test_gone(self, pair, wait):
        """When the other side has gone, what it had said is given, and then that."""
        ours, theirs, sock = pair
        ours.send([CancelJob(1)])
        sock.close()
        assert theirs.receive(wait=wait) == [CancelJob(1)]
        with pytest.raises(EOFError):
            theirs.receive(wait=wait)

    def test_gone_in_a_message(self, pair):
        """Half a message is none."""
        _, theirs, sock = pair
        sock.sendall(bytes(protocol.encode([CancelJob(1)])[:-1]))
        sock.close()
        with pytest.raises(EOFError):
            theirs.receive()
