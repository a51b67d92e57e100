"""The clients' streams reconnect, and go on from the last answer's token."""

import concurrent.futures

import numpy as np
import pytest

from service.client import ClientError, ConnectionLost, RequestError, StreamLost
from service.client import stream as client_stream
from tests.service.client.counting import assert_counts, part
from tests.service.client.tcp_proxy import Proxy
from tests.support.processes import free_port
from tests.support.servers import SECONDS, value, wait
from tests.support.streams import (
    WebSocketStream,
    counting,
    hold_engines,
    release_engines,
    streams_open,
    wait_closed,
    wait_entered,
)


@pytest.fixture(scope="module")
def _short_idle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short-idle") / "bundles"
    with counting(folder, stream_idle_seconds=0.1) as service:
        yield service


@pytest.fixture
def short_idle(_short_idle):
    """The same with a short idle timeout."""
    wait_closed(_short_idle, "made")
    return _short_idle


class TestReconnects:
    @pytest.mark.slow
    def test_too_many_streams(self, tmp_path, kind, set_delays):
        """If there are too many streams, opening one is retried for a while."""
        name, labels = "unrolled_refused_requests_total", {"kind": "too-many-streams"}
        with counting(tmp_path / "bundles", max_streams=1) as service:
            stream = kind.stream(kind.client(service.url), "made")

            def refused():
                return value(service.metrics(), name, **labels)

            with WebSocketStream(service.url, "model=made") as other:
                with pytest.raises(RequestError) as caught:
                    stream.send(part(0, 1))
                assert caught.value.status == 503
                assert caught.value.retry_after == 10
                assert caught.value.type.endswith("too-many-streams")
                before = refused()
                assert before == len(client_stream.DELAYS)
                set_delays(0.05)
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    sent = pool.submit(stream.send, part(0, 2))
                    wait(lambda: refused() > before, "it is refused")
                    other.close()
                    assert_counts(sent.result(SECONDS), 2)

    def test_no_service(self, kind):
        """A service that can't be reached raises ConnectionLost."""
        stream = kind.stream(kind.client(f"http://127.0.0.1:{free_port()}"), "made")
        for call in (lambda: stream.send(part(0, 1)), stream.end):
            with pytest.raises(
                ConnectionLost, match=r"(?i)refused|connect call failed"
            ):
                call()

    def test_idle(self, short_idle, kind):
        """After the service closed an idle stream, the next message reopens it."""
        stream = kind.stream(kind.client(short_idle.url), "made")
        for steps in (0, 1, 2):
            assert_counts(stream.send(part(steps, steps + 1)), steps + 1)
            wait_closed(short_idle, "made")
        assert stream.end() is not None
        assert stream.steps == 3

    def test_idle_before_any_step(self, short_idle, kind):
        """So it does if the service has only refused a message."""
        client = kind.client(short_idle.url)
        token = kind.stream(client, "made").send(part(0, 3)).state
        stream = kind.stream(client, "made", state=token)
        with pytest.raises(RequestError):
            stream.send([[1, 2]])
        wait_closed(short_idle, "made")
        assert_counts(stream.send(part(3, 5)), 5)

    def test_idle_while_sending(self, short_idle, kind):
        """So it does if the service closes it while the first message, which has the
        token, is on the way."""
        with Proxy(short_idle.url) as proxy:
            token = (
                kind.stream(kind.client(short_idle.url), "made").send(part(0, 3)).state
            )
            wait_closed(short_idle, "made")
            stream = kind.stream(kind.client(proxy.url), "made", state=token)
            proxy.keep_back()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                sent = pool.submit(stream.send, part(3, 5))
                wait(lambda: streams_open(short_idle, "made") == 1, "it is open")
                wait_closed(short_idle, "made")
                proxy.pass_on()
                assert_counts(sent.result(SECONDS), 5)

    def test_idle_without_tokens(self, short_idle, kind):
        """So it does without tokens: the service's last message has one."""
        stream = kind.stream(kind.client(short_idle.url), "made", resume=False)
        assert_counts(stream.send(part(0, 1)), 1)
        wait_closed(short_idle, "made")
        # The client has seen the close, too.
        connection = getattr(stream, "_connection", None)
        if connection is not None:
            wait(lambda: connection.state.name == "CLOSED", "it is closed")
        assert_counts(stream.send(part(1, 2)), 2)

    @pytest.mark.slow
    def test_restart(self, tmp_path, kind, set_delays):
        """A restarted service with the same key continues each stream, also if a message
        is sent meanwhile."""
        set_delays(0.05)  # long enough for the restart
        port = free_port()
        streams = []
        with counting(tmp_path / "made", port=port) as service:
            client = kind.client(service.url)
            for first in range(1, 4):
                streams.append(kind.stream(client, "made"))
                assert_counts(streams[-1].send(part(0, first, first)), first, first)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            early = pool.submit(streams[0].send, part(1, 3, 1))
            with counting(tmp_path / "made", port=port):
                assert_counts(early.result(SECONDS), 3, 1)
                for first in (2, 3):
                    stream = streams[first - 1]
                    answer = stream.send(part(first, first + 2, first))
                    assert_counts(answer, first + 2, first)
                    assert stream.end() is not None

    @pytest.mark.slow
    def test_restart_with_another_key(self, tmp_path, kind):
        """With another key the token is refused, and the sequence does not start again."""
        port = free_port()
        with counting(tmp_path / "made", port=port) as service:
            stream = kind.stream(kind.client(service.url), "made")
            stream.send(part(0, 2))
        with counting(tmp_path / "made", port=port, state_key="another key " * 2):
            for _ in range(2):
                with pytest.raises(RequestError) as caught:
                    stream.send(part(2, 3))
                assert caught.value.status == 422
                assert caught.value.type.endswith("invalid-state")

    def test_cut(self, counted, kind):
        """A connection that breaks is replaced, and the stream goes on."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made")
            for steps in (0, 2, 4, 6):
                assert_counts(stream.send(part(steps, steps + 2)), steps + 2)
                proxy.cut()
            assert stream.end() is not None
            assert stream.steps == 8
        wait_closed(counted, "made")

    def test_cut_before_the_answer(self, counted, kind):
        """A message whose answer was lost is sent again, and counts once."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made")
            for steps in (0, 2):
                hold_engines(counted)
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    sent = pool.submit(stream.send, part(steps, steps + 2))
                    wait_entered(counted)
                    accepted = proxy.accepted
                    proxy.cut()
                    wait(lambda n=accepted: proxy.accepted > n, "it has reconnected")
                    release_engines(counted)
                    assert_counts(sent.result(SECONDS), steps + 2)

    def test_lost(self, counted, kind):
        """Without tokens a stream is lost if its connection breaks."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made", resume=False)
            assert_counts(stream.send(part(0, 2)), 2)
            accepted = proxy.accepted
            proxy.cut()
            for call in (lambda: stream.send(part(2, 3)), stream.end) * 2:
                with pytest.raises(StreamLost):
                    call()
            assert proxy.accepted == accepted

    def test_not_lost(self, counted, kind):
        """It is not lost before the first step, or if the last answer had a token."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made", resume=False)
            with pytest.raises(RequestError):
                stream.send([[1, 2]])
            proxy.cut()
            assert_counts(stream.send(part(0, 2)), 2)
            assert_counts(stream.send(part(2, 3), return_state=True), 3)
            proxy.cut()
            assert_counts(stream.send(part(3, 5)), 5)

    @pytest.mark.slow
    def test_too_long(self, tmp_path, kind):
        """A message that is too long raises an error, and is not sent again."""
        with (
            counting(tmp_path / "made", stream_message_bytes=1000) as service,
            Proxy(service.url) as proxy,
        ):
            stream = kind.stream(kind.client(proxy.url), "made")
            stream.send(part(0, 1))
            with pytest.raises(ClientError):
                stream.send(np.zeros((1000, 1)))
            assert proxy.accepted <= 2
            assert_counts(stream.send(part(1, 2)), 2)
