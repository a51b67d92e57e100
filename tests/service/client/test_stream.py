"""The clients' streams: answers, refused messages, and timeouts."""

import anyio
import anyio.to_thread
import numpy as np
import pytest

from service.client import (
    AsyncClient,
    ConnectionLost,
    RequestError,
    StreamLost,
    results,
)
from tests.service.client.counting import assert_counts, part
from tests.service.client.tcp_proxy import Proxy
from tests.support.bundles import random_frames
from tests.support.servers import value, wait
from tests.support.streams import (
    hold_engines,
    release_engines,
    streams_open,
    wait_closed,
    wait_entered,
)

FRAMES = random_frames(np.random.default_rng(0), 8)
CLOSE = {"rtol": 0, "atol": 1e-5}


class TestAnswers:
    def test_classify(self, running_server, kind):
        """`send` returns the class so far, with the number of steps."""
        client = kind.client(running_server.url)
        stream = kind.stream(client, "walks")
        whole = client.classify([FRAMES[:3], FRAMES], model="walks")
        for begin, end, right in ((0, 3, 0), (3, 8, 1)):
            answer = stream.send(FRAMES[begin:end])
            assert type(answer) is results.Classification
            right = whole.predictions[right]
            np.testing.assert_allclose(
                answer.probabilities, right.probabilities, **CLOSE
            )
            assert answer.probabilities.dtype == np.float32
            assert answer.label == right.label
            assert answer.probability == pytest.approx(right.probability, abs=1e-5)
            assert answer.top is None
            assert answer.steps == stream.steps == end

    def test_label(self, running_server, kind):
        """For a labelling model it returns the classes of these frames."""
        client = kind.client(running_server.url)
        stream = kind.stream(client, "tags")
        whole = client.label([FRAMES], model="tags").predictions[0]
        for begin, end in ((0, 1), (1, 6), (6, 8)):
            answer = stream.send(FRAMES[begin:end])
            assert type(answer) is results.Labelling
            right = whole.probabilities[begin:end]
            np.testing.assert_allclose(answer.probabilities, right, **CLOSE)
            assert answer.labels == whole.labels[begin:end]
            assert answer.steps == end

    def test_methods(self, running_server, kind):
        """The method of the model's task returns its answers; the other is refused."""
        client = kind.client(running_server.url)
        for model, method, other, result in (
            ("walks", "classify", "label", results.Classification),
            ("tags", "label", "classify", results.Labelling),
        ):
            stream = kind.stream(client, model)
            assert type(getattr(stream, method)(FRAMES[:3])) is result
            with pytest.raises(ValueError, match=f"is to {method}, not {other}"):
                getattr(stream, other)(FRAMES[3:])
            assert getattr(stream, method)(FRAMES[:1], return_state=True).state
            assert stream.steps == 9

    def test_top_k(self, running_server, kind):
        """With `top_k` there are choices in place of probabilities."""
        client = kind.client(running_server.url)
        first = kind.stream(client, "walks", top_k=2).send(FRAMES)
        steps = kind.stream(client, "tags", top_k=1).send(FRAMES)
        assert first.probabilities is None
        assert [type(choice) for choice in first.top] == [results.Choice] * 2
        assert first.top[0].label == first.label
        assert [step[0].label for step in steps.top] == steps.labels

    def test_arrays(self, running_server, kind):
        """Frames may be nested lists or arrays of any type and layout."""
        client = kind.client(running_server.url)
        (right,) = client.classify([FRAMES], model="walks").predictions
        for array in (
            FRAMES.tolist(),
            FRAMES.astype(np.float64),
            np.asfortranarray(FRAMES),
            np.repeat(FRAMES, 2, 0)[::2],
        ):
            answer = kind.stream(client, "walks").send(array)
            np.testing.assert_allclose(
                answer.probabilities, right.probabilities, **CLOSE
            )

    def test_states(self, running_server, kind):
        """Each answer has a token, from which a stream or a request continues; with
        `resume=False` only an answer for which it was requested."""
        client = kind.client(running_server.url)
        stream = kind.stream(client, "walks", resume=False)
        assert stream.state is None
        assert stream.send(FRAMES[:1]).state is None
        answer = stream.send(FRAMES[1:2], return_state=True)
        assert stream.state == answer.state is not None
        assert stream.send(FRAMES[2:4]).state is None
        assert stream.send(FRAMES[4:]).state is None
        assert stream.steps == 8
        resuming = kind.stream(client, "walks", state=answer.state)
        assert resuming.state == answer.state
        later = resuming.send(FRAMES[2:])
        assert later.steps == resuming.steps == 8
        assert resuming.state == later.state is not None
        answer = client.classify(
            [FRAMES[2:]],
            model="walks",
            states=[answer.state],
            return_state=True,
        ).predictions[0]
        whole = client.classify([FRAMES], model="walks").predictions[0]
        for part_answer in (later, answer):
            assert part_answer.steps == 8
            np.testing.assert_allclose(
                part_answer.probabilities, whole.probabilities, **CLOSE
            )
        again = kind.stream(client, "walks", state=answer.state)
        assert again.send(FRAMES).steps == 16

    def test_end(self, counted, kind):
        """`end` returns the token of the last step, and ends the stream."""
        client = kind.client(counted.url)
        stream = kind.stream(client, "made", resume=False)
        stream.send(part(0, 3))
        token = stream.end()
        assert token == stream.state is not None
        assert stream.steps == 3
        wait_closed(counted, "made")
        later = kind.stream(client, "made", state=token)
        assert_counts(later.send(part(3, 5)), 5)

    def test_end_without_frames(self, counted, kind):
        """If nothing was sent, `end` returns the token that the stream began with."""
        client = kind.client(counted.url)
        assert kind.stream(client, "made").end() is None
        token = kind.stream(client, "made").send(part(0, 4)).state
        stream = kind.stream(client, "made", state=token)
        other = stream.end()
        assert stream.steps == 4
        assert_counts(kind.stream(client, "made", state=other).send(part(4, 5)), 5)

    def test_closes(self, counted, kind):
        """A stream is opened by its first message, and closed by `close`."""
        client = kind.client(counted.url)
        stream = kind.stream(client, "made")
        assert streams_open(counted, "made") == 0
        stream.send(part(0, 1))
        assert streams_open(counted, "made") == 1
        stream.close()
        wait_closed(counted, "made")
        stream.close()


class TestRefused:
    def test_message(self, counted, kind):
        """A refused message raises RequestError with status and path, and the stream goes
        on."""
        client = kind.client(counted.url)
        for resume in (True, False):
            stream = kind.stream(client, "made", resume=resume)
            for steps in (0, 2):
                with pytest.raises(RequestError) as caught:
                    stream.send([[1, 2]])
                error = caught.value
                assert error.status == 422
                assert error.type == "urn:unrolled:error:invalid-request"
                assert error.title
                assert error.request_id
                assert error.errors[0]["path"] == "frames[0]"
                assert "frames[0]: has 2 features" in str(error)
                assert stream.steps == steps
                assert_counts(stream.send(part(steps, steps + 2)), steps + 2)
        assert streams_open(counted, "made") == 2

    def test_invalid_values(self, counted, kind):
        """NaN is refused with its path; a ragged list is not sent."""
        stream = kind.stream(kind.client(counted.url), "made")
        with pytest.raises(RequestError) as caught:
            stream.send([[1], [np.nan]])
        assert caught.value.errors[0]["path"] == "frames[1][0]"
        for steps in (0, 1):
            with pytest.raises(ValueError, match="inhomogeneous"):
                stream.send([[1, 2], [1]])
            assert_counts(stream.send(part(steps, steps + 1)), steps + 1)

    def test_handshake(self, running_server, kind):
        """A stream that the service refuses raises RequestError with the first message,
        and is not retried. The client's headers are sent with the handshake."""
        name = "unrolled_refused_requests_total"
        headers = {"X-Request-ID": "mine"}
        client = kind.client(running_server.url, headers=headers)
        for model, options, status, slug in (
            ("nobody", {}, 404, "unknown-model"),
            ("both", {}, 422, "not-streamable"),
            ("walks", {"top_k": 0}, 422, "invalid-request"),
            ("", {}, 422, "invalid-request"),
            ("walks&x=1", {}, 404, "unknown-model"),
        ):
            before = value(running_server.metrics(), name, kind=slug)
            with pytest.raises(RequestError) as caught:
                kind.stream(client, model, **options).send(FRAMES)
            assert caught.value.status == status
            assert caught.value.type == f"urn:unrolled:error:{slug}"
            assert caught.value.detail
            assert caught.value.request_id == "mine"
            after = value(running_server.metrics(), name, kind=slug)
            assert after == before + 1

    def test_token(self, running_server, kind):
        """An invalid token, or another model's, is refused each time."""
        client = kind.client(running_server.url)
        other = kind.stream(client, "tags").send(FRAMES).state
        for token, status in (("x", 422), (other, 409)):
            stream = kind.stream(client, "walks", state=token)
            for _ in range(2):
                with pytest.raises(RequestError) as caught:
                    stream.send(FRAMES)
                assert caught.value.status == status
                assert caught.value.errors[0]["path"] == "state"


class TestTimeout:
    def test_no_answer(self, counted, kind):
        """A message that isn't answered in time raises ConnectionLost. The stream goes on
        from before it, and a late answer is not taken for the next one."""
        stream = kind.stream(kind.client(counted.url, timeout=0.5), "made")
        for steps in (0, 2):
            hold_engines(counted)
            with pytest.raises(ConnectionLost, match="no answer in"):
                stream.send(part(steps, steps + 5))
            release_engines(counted)
            assert stream.steps == steps
            assert_counts(stream.send(part(steps, steps + 2)), steps + 2)
        wait(lambda: streams_open(counted, "made") == 1, "others are closed")

    def test_lost(self, counted, kind):
        """Without tokens the stream is lost."""
        client = kind.client(counted.url, timeout=0.5)
        stream = kind.stream(client, "made", resume=False)
        stream.send(part(0, 2))
        hold_engines(counted)
        with pytest.raises(ConnectionLost, match="no answer in"):
            stream.send(part(2, 3))
        release_engines(counted)
        with pytest.raises(StreamLost):
            stream.send(part(2, 3))

    @pytest.mark.slow
    def test_no_closing_handshake(self, counted, kind):
        """So does a service that doesn't even answer the closing handshake."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url, timeout=0.5), "made")
            stream.send(part(0, 1))
            proxy.keep_back()
            with pytest.raises(ConnectionLost, match="no answer in"):
                stream.send(part(1, 2))
            proxy.pass_on()
            assert_counts(stream.send(part(1, 2)), 2)

    def test_cancelled(self, counted):
        """The late answer to a cancelled `send` is not taken for the next one."""

        async def run():
            client = AsyncClient(counted.url)
            async with client, client.stream("made") as stream:
                await stream.send(part(0, 1))
                hold_engines(counted)
                async with anyio.create_task_group() as group:
                    group.start_soon(stream.send, part(1, 2))
                    await anyio.to_thread.run_sync(wait_entered, counted)
                    group.cancel_scope.cancel()
                release_engines(counted)
                return await stream.send(part(1, 6))

        assert_counts(anyio.run(run), 6)
