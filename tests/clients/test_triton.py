"""Triton's own client, both the plain and the asynchronous one, unmodified against
the running service."""

import asyncio
import itertools
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from tritonclient import http as plain
from tritonclient.http import InferInput, InferRequestedOutput, aio
from tritonclient.utils import InferenceServerException

from service.pool import spawn
from service.settings import Settings
from service.worker import engine as engines
from tests.support.bundles import copy_bundle, random_frames
from tests.support.servers import SECONDS, running

TASKS = {"walks": "classify", "tags": "label", "both": "label"}
CLASSES = {
    "walks": ["run", "sit", "stand", "wälk"],
    "tags": ["noun", "verb", "other"],
    "both": ["down", "flat", "up"],
}
LENGTHS = [1, 7, 120, 3]  # of labels' answers more than is sent uncompressed
LENGTH = "inference-header-content-length"
SERVED = {
    "binary_tensor_data",
    "parameters",
    "classification",
    "sequence",
    "sequence(string_id)",
    "model_configuration",
    "statistics",
}
REPOSITORY = {"model_repository", "model_repository(unload_dependents)"}
# What the client says of answers that it can't read.
UNREADABLE = ("an exception occurred in the client", "empty response")
CODINGS = [
    pytest.param(None, id="plain"),
    pytest.param("gzip", id="gzip"),
    pytest.param("deflate", id="deflate"),
]


class Triton:
    """One of the clients; `call` answers the same of either."""

    def __init__(self, runner, client):
        self._runner, self._client = runner, client

    def call(self, method, *args, **options):
        answer = getattr(self._client, method)(*args, **options)
        return self._runner.run(answer) if self._runner else answer

    def gather(self, calls):
        """The answers of calls that are under way at once."""

        async def together():
            made = [getattr(self._client, name)(*given) for name, *given in calls]
            return await asyncio.gather(*made)

        return self._runner.run(together())

    def refused(self, method, *args, **options):
        """The refusal of a call, whose text is the service's own."""
        with pytest.raises(InferenceServerException) as caught:
            self.call(method, *args, **options)
        message = caught.value.message()
        assert message
        assert not any(text in message for text in UNREADABLE), message
        return caught.value


@contextmanager
def connected(kind, url):
    at = url.removeprefix("http://")
    if kind == "plain":
        with plain.InferenceServerClient(at, concurrency=4) as client:
            yield Triton(None, client)
        return

    async def connect():
        return aio.InferenceServerClient(at)

    with asyncio.Runner() as runner:
        client = runner.run(connect())
        try:
            yield Triton(runner, client)
        finally:
            runner.run(client.close())


@pytest.fixture(scope="module", params=["plain", "aio"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def client(kind, server):
    with connected(kind, server) as made:
        yield made


@pytest.fixture
def http(running_server):
    return running_server.http


@pytest.fixture
def owned(bundles, tmp_path):
    """A folder of bundles of its own, and a service over it with an open repository."""
    root = tmp_path / "owned"
    for name in ("walks", "tags"):
        shutil.copytree(bundles / name, root / name)
    settings = Settings(port=0, bundles=root, workers=1, admin=True, reload_seconds=0)
    with running(settings, start=spawn.thread(engines.ENGINES)) as made:
        yield root, made


def sequences_of(name, lengths=LENGTHS):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, length) for length in lengths]


def expected(http, name, sequences):
    """What the service's own API says of each sequence."""
    body = {"model": name, "sequences": [one.tolist() for one in sequences]}
    response = http.post(f"/{TASKS[name]}", json=body)
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    return [np.array(one["probabilities"], np.float32) for one in predictions]


def tensor(name, array, *, binary=True):
    kinds = {"float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64"}
    made = InferInput(name, list(array.shape), kinds[str(array.dtype)])
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def inputs_of(sequences, *, binary=True, padding=0.0):
    """Frames, padded, and the lengths."""
    lengths = np.array([len(one) for one in sequences], np.int32)
    shape = (len(sequences), lengths.max(), 3)
    frames = np.full(shape, padding, np.float32)
    for row, one in zip(frames, sequences, strict=True):
        row[: len(one)] = one
    both = {"frames": frames, "lengths": lengths}
    return [tensor(*item, binary=binary) for item in both.items()]


def outputs_of(binary, count=0):
    """As asked for; None: as the client does by default."""
    if binary is None:
        return None
    wanted = InferRequestedOutput(
        "probabilities", binary_data=binary, class_count=count
    )
    return [wanted]


def assert_same(result, answers):
    """The result is the answers, padded with zeros where they are per step."""
    given = result.as_numpy("probabilities")
    assert given.dtype == np.float32
    assert len(given) == len(answers)
    for row, answer in zip(given, answers, strict=True):
        there = row if answer.ndim == 1 else row[: len(answer)]
        np.testing.assert_allclose(there, answer, atol=1e-5, strict=True)
        if answer.ndim == 2:
            assert not row[len(answer) :].any()


class TestAbout:
    def test_health(self, client):
        """The server lives and is ready, and so is each model that there is, with and
        without a version."""
        assert client.call("is_server_live")
        assert client.call("is_server_ready")
        for name in TASKS:
            assert client.call("is_model_ready", name)
            assert client.call("is_model_ready", name, "1")
        assert not client.call("is_model_ready", "walks", "2")
        assert not client.call("is_model_ready", "nothing")

    def test_server_metadata(self, client):
        """The server names itself, and of the extensions those alone that it serves."""
        about = client.call("get_server_metadata", query_params={"a": [1, 2]})
        assert set(about) == {"name", "version", "extensions"}
        assert about["name"] == "unrolled"
        assert set(about["extensions"]) == SERVED

    @pytest.mark.parametrize("name", TASKS)
    def test_model_metadata(self, client, name):
        """A model's tensors have the shapes in which they are sent and answered."""
        steps = [-1] if TASKS[name] == "label" else []
        for version in ("", "1"):
            about = client.call("get_model_metadata", name, version)
            assert about["name"] == name
            assert about["versions"] == ["1"]
            assert about["platform"] in ("onnxruntime_onnx", "tensorflow_savedmodel")
            inputs = {i["name"]: (i["datatype"], i["shape"]) for i in about["inputs"]}
            assert inputs["frames"] == ("FP32", [-1, -1, 3])
            assert inputs["lengths"][0] == "INT32"
            (output,) = about["outputs"]
            shape = [-1, *steps, len(CLASSES[name])]
            assert (output["name"], output["shape"]) == ("probabilities", shape)

    @pytest.mark.parametrize("name", TASKS)
    def test_model_config(self, client, name):
        """A model's configuration leaves the batch out of its shapes."""
        steps = [-1] if TASKS[name] == "label" else []
        for version in ("", "1"):
            config = client.call("get_model_config", name, version)
            assert config["name"] == name
            assert config["max_batch_size"] == 256
            frames, lengths = config["input"]
            assert (frames["data_type"], frames["dims"]) == ("TYPE_FP32", [-1, 3])
            assert (lengths["name"], lengths["optional"]) == ("lengths", True)
            assert config["output"][0]["dims"] == [*steps, len(CLASSES[name])]

    def test_statistics(self, client):
        """The statistics are of all models, of one or of a version, and count each
        request and each of its sequences."""
        told = client.call("get_inference_statistics")["model_stats"]
        assert {(one["name"], one["version"]) for one in told} == {
            (name, "1") for name in TASKS
        }
        (before,) = client.call("get_inference_statistics", "walks")["model_stats"]
        client.call("infer", "walks", inputs_of(sequences_of("walks")))
        client.refused("infer", "walks", [tensor("x", np.zeros((1, 1), np.float32))])
        (after,) = client.call("get_inference_statistics", "walks", "1")["model_stats"]
        made = after["inference_count"] - before["inference_count"]
        assert made == len(LENGTHS)
        assert after["execution_count"] > before["execution_count"]
        assert after["last_inference"] >= before["last_inference"]
        for part in ("success", "queue", "compute_infer", "compute_output"):
            one, other = (of["inference_stats"][part] for of in (before, after))
            assert other["count"] == one["count"] + 1, part
            assert other["ns"] >= one["ns"], part

    def test_names(self, client, http):
        """A version or a label may stand in the name."""
        sequences = sequences_of("walks")
        answers = expected(http, "walks", sequences)
        for name, version in [("walks@1", ""), ("walks@latest", ""), ("walks", "1")]:
            assert client.call("is_model_ready", name, version)
            assert client.call("get_model_metadata", name, version)["name"] == "walks"
            result = client.call("infer", name, inputs_of(sequences), version)
            told = result.get_response()
            assert (told["model_name"], told["model_version"]) == ("walks", "1")
            assert_same(result, answers)


class TestRepository:
    def test_closed(self, client):
        """Without the setting, the repository refuses with the setting's name."""
        for method in ("get_model_repository_index", "load_model", "unload_model"):
            names = () if method.endswith("index") else ("walks",)
            error = client.refused(method, *names)
            assert error.status() == "403"
            assert "UNROLLED_ADMIN" in error.message()
        assert client.call("is_model_ready", "walks")

    def test_unload_and_load(self, kind, owned):
        """A model that is unloaded is there no more, until it is loaded."""
        _, service = owned
        sequences = sequences_of("walks")
        answers = expected(service.http, "walks", sequences)
        with connected(kind, service.url) as client:
            about = client.call("get_server_metadata")
            assert set(about["extensions"]) == SERVED | REPOSITORY
            index = client.call("get_model_repository_index")
            ready = {"version": "1", "state": "READY", "reason": ""}
            assert index == [{"name": name} | ready for name in ("tags", "walks")]
            client.call("unload_model", "walks", unload_dependents=True)
            assert not client.call("is_model_ready", "walks")
            assert client.call("is_model_ready", "tags")
            client.refused("infer", "walks", inputs_of(sequences))
            index = client.call("get_model_repository_index")
            states = {one["name"]: (one["state"], one["reason"]) for one in index}
            assert states["walks"] == ("UNAVAILABLE", "unloaded")
            assert states["tags"] == ("READY", "")
            client.call("load_model", "walks")
            assert client.call("is_model_ready", "walks")
            assert_same(client.call("infer", "walks", inputs_of(sequences)), answers)
            for method in ("load_model", "unload_model"):
                assert client.refused(method, "nothing").status() == "404"
            for changed in (
                {"config": '{"max_batch_size": 1}'},
                {"config": "sequences"},
                {"config": "{}", "files": {"file:1/model": b"x"}},
            ):
                error = client.refused("load_model", "walks", **changed)
                assert error.status() == "400"

    def test_batching(self, kind, owned):
        """Loading may choose which batching a configuration tells of."""
        _, service = owned
        with connected(kind, service.url) as client:
            config = '{"sequence_batching": {}}'
            for override, told in ((config, "sequence"), (None, "dynamic")):
                client.call("load_model", "walks", config=override)
                members = client.call("get_model_config", "walks")
                kinds = {"sequence_batching", "dynamic_batching"} & set(members)
                assert kinds == {f"{told}_batching"}
                assert "dynamic_batching" in client.call("get_model_config", "tags")

    def test_new_version(self, kind, owned):
        """Loading takes up a new version, beside which a sequence stays with its own;
        one that is broken is refused, and the one before it is served on."""
        root, service = owned
        inputs = inputs_of(sequences_of("walks", [3]))
        options = {"sequence_id": 1}
        with connected(kind, service.url) as client:
            client.call("infer", "walks", inputs, sequence_start=True, **options)
            copy_bundle(root / "walks" / "1", root / "walks" / "2", version="2")
            client.call("load_model", "walks")
            assert client.call("get_model_metadata", "walks")["versions"] == ["2"]
            result = client.call("infer", "walks", inputs, **options)
            assert result.get_response()["model_version"] == "1"
            copy_bundle(root / "walks" / "1", root / "walks" / "3", version="4")
            error = client.refused("load_model", "walks")
            assert error.status() == "503"
            index = client.call("get_model_repository_index")
            states = {(one["name"], one["version"]): one["state"] for one in index}
            assert states["walks", "2"] == "READY"
            assert states["walks", "3"] == "UNAVAILABLE"
            result = client.call("infer", "walks", inputs)
            assert result.get_response()["model_version"] == "2"


class TestInfer:
    @pytest.mark.parametrize("accepted", CODINGS)
    @pytest.mark.parametrize("sent", CODINGS)
    @pytest.mark.parametrize("output", [None, True, False])
    @pytest.mark.parametrize("binary", [True, False])
    def test_encodings(self, client, http, binary, output, sent, accepted):
        """However a request and its answer are written, they say what the service's
        own API says, and nothing past a length counts."""
        for name in TASKS:
            sequences = sequences_of(name)
            result = client.call(
                "infer",
                name,
                inputs_of(sequences, binary=binary, padding=9.0),
                outputs=outputs_of(output),
                request_id="ours",
                request_compression_algorithm=sent,
                response_compression_algorithm=accepted,
            )
            assert result.get_response()["id"] == "ours"
            assert_same(result, expected(http, name, sequences))

    def test_one_length(self, client, http):
        """Sequences of one length need no `lengths`, which may also be a column."""
        for name in TASKS:
            sequences = sequences_of(name, [5, 5, 5])
            answers = expected(http, name, sequences)
            frames, lengths = inputs_of(sequences, binary=False)
            column = tensor("lengths", np.full((3, 1), 5, np.int32))
            for inputs in ([frames], [column, frames], [lengths, frames]):
                assert_same(client.call("infer", name, inputs), answers)

    def test_ids(self, client):
        """A request that has no id is given one."""
        ids = set()
        for _ in range(2):
            result = client.call("infer", "walks", inputs_of(sequences_of("walks")))
            ids.add(result.get_response()["id"])
        assert len(ids) == 2
        assert all(type(one) is str and one for one in ids)

    @pytest.mark.parametrize("binary", [True, False])
    @pytest.mark.parametrize("name", ["walks", "tags"])
    @pytest.mark.parametrize("count", [1, 2, 100])
    def test_classification(self, client, http, binary, name, count):
        """The likeliest classes, best first, as texts; none past a length."""
        sequences, classes = sequences_of(name, [2, 9, 4]), CLASSES[name]
        wanted = outputs_of(binary, count)
        result = client.call("infer", name, inputs_of(sequences), outputs=wanted)
        texts = result.as_numpy("probabilities")
        steps, shown = [9] if name == "tags" else [], min(count, len(classes))
        assert texts.shape == (3, *steps, shown)
        answers = expected(http, name, sequences)
        for row, answer in zip(texts, answers, strict=True):
            rows = np.atleast_2d(row)
            for place, text in np.ndenumerate(rows[len(np.atleast_2d(answer)) :]):
                assert text in ("", b""), place
            for told, numbers in zip(rows, np.atleast_2d(answer), strict=False):
                best = np.argsort(-numbers)[:shown]
                for text, index in zip(told, best, strict=True):
                    text = text.decode() if isinstance(text, bytes) else text
                    value, place, label = text.split(":")
                    assert (int(place), label) == (index, classes[index])
                    assert float(value) == pytest.approx(numbers[index], abs=1e-5)

    def test_parameters(self, client, http):
        """A priority, a long timeout and parameters of one's own change nothing."""
        sequences = sequences_of("walks")
        options = {"priority": 3, "timeout": 60_000_000, "parameters": {"ours": "x"}}
        result = client.call("infer", "walks", inputs_of(sequences), **options)
        assert_same(result, expected(http, "walks", sequences))

    def test_timeout(self, client, http):
        """A request that has no answer by its timeout is told so, and the next one is
        answered."""
        sequences = sequences_of("both", [900] * 8)
        error = client.refused("infer", "both", inputs_of(sequences), timeout=1)
        assert error.status() == "504"
        sequences = sequences_of("both")
        result = client.call("infer", "both", inputs_of(sequences))
        assert_same(result, expected(http, "both", sequences))

    @pytest.mark.parametrize("kind", ["plain"], scope="module")
    def test_async_infer(self, client, http):
        """Requests of the plain client that are under way at once are each answered
        with their own."""
        asked = [sequences_of("tags", [1 + k % 9, 3]) for k in range(24)]
        made = [client.call("async_infer", "tags", inputs_of(one)) for one in asked]
        for one, request in zip(asked, made, strict=True):
            result = request.get_result(timeout=SECONDS)
            assert_same(result, expected(http, "tags", one))

    @pytest.mark.parametrize("kind", ["aio"], scope="module")
    def test_gathered(self, client, http):
        """And so are those of the asynchronous one."""
        asked = [sequences_of("tags", [1 + k % 9, 3]) for k in range(24)]
        results = client.gather([("infer", "tags", inputs_of(one)) for one in asked])
        for one, result in zip(asked, results, strict=True):
            assert_same(result, expected(http, "tags", one))

    @pytest.mark.parametrize("coding", CODINGS)
    @pytest.mark.parametrize("binary", [True, False])
    def test_bodies(self, http, binary, coding):
        """Bodies made and read by the client, carried by another, are compressed as
        that one accepts."""
        sequences = sequences_of("tags")
        body, size = plain.InferenceServerClient.generate_request_body(
            inputs_of(sequences), outputs=outputs_of(binary)
        )
        headers = {LENGTH: str(size), "accept-encoding": coding or "br, zstd"}
        path = "/v2/models/tags/infer"
        with http.stream("POST", path, content=body, headers=headers) as response:
            content = b"".join(response.iter_raw())
        assert response.status_code == 200
        told = response.headers.get("content-encoding")
        assert told == coding
        size = response.headers.get(LENGTH)
        assert (size is not None) is binary
        result = plain.InferenceServerClient.parse_response_body(
            content, header_length=size, content_encoding=told
        )
        assert_same(result, expected(http, "tags", sequences))

    @pytest.mark.parametrize("name", TASKS)
    def test_raw(self, http, name):
        """A body that is nothing but one sequence's numbers is answered in binary."""
        (frames,) = sequences = sequences_of(name, [6])
        response = http.post(
            f"/v2/models/{name}/infer", content=frames.tobytes(), headers={LENGTH: "0"}
        )
        assert response.status_code == 200, response.text
        result = plain.InferenceServerClient.parse_response_body(
            response.content, header_length=response.headers[LENGTH]
        )
        assert_same(result, expected(http, name, sequences))


class TestSequences:
    @pytest.mark.parametrize("name", ["walks", "tags"])
    @pytest.mark.parametrize(
        "key",
        [
            pytest.param(7, id="number"),
            pytest.param(2**64 - 1, id="largest"),
            pytest.param("café 7", id="text"),
        ],
    )
    def test_whole(self, client, http, name, key):
        """A sequence in parts under an id is answered as if it were whole."""
        (whole,) = sequences_of(name, [23])
        (answer,) = expected(http, name, [whole])
        parts, cuts = [], [0, 1, 9, 22, 23]
        for start, end in itertools.pairwise(cuts):
            result = client.call(
                "infer",
                name,
                inputs_of([whole[start:end]]),
                sequence_id=key,
                sequence_start=start == 0,
                sequence_end=end == 23,
            )
            (given,) = result.as_numpy("probabilities")
            parts.append(given)
            if name == "walks":
                (sofar,) = expected(http, name, [whole[:end]])
                np.testing.assert_allclose(given, sofar, atol=1e-5)
        if name == "tags":
            np.testing.assert_allclose(np.concatenate(parts), answer, atol=1e-5)
        error = go_on(client, name, key)
        assert error.status() == "400"

    def test_interleaved(self, client, http):
        """Sequences of several ids, a number and its text among them, and of two
        models, go on beside each other."""
        keys = [("walks", 1), ("walks", "1"), ("walks", 2), ("tags", 1), ("tags", "b")]
        rng = np.random.default_rng(3)
        wholes = {of: random_frames(rng, 12) for of in keys}
        last = {}
        for start in (0, 4, 8):
            for name, key in keys:
                last[name, key] = client.call(
                    "infer",
                    name,
                    inputs_of([wholes[name, key][start : start + 4]]),
                    sequence_id=key,
                    sequence_start=start == 0,
                    sequence_end=start == 8,
                )
        for (name, key), result in last.items():
            (answer,) = expected(http, name, [wholes[name, key]])
            answer = answer[-4:] if name == "tags" else answer
            assert_same(result, [answer])

    def test_begun_anew(self, client, http):
        """START of a sequence that goes on begins it anew."""
        one, other = sequences_of("walks", [5, 5])
        for frames, end in ((one, False), (other, True)):
            flags = {"sequence_start": True, "sequence_end": end}
            inputs = inputs_of([frames])
            result = client.call("infer", "walks", inputs, sequence_id=9, **flags)
            assert_same(result, expected(http, "walks", [frames]))

    def test_none(self, client, http):
        """No id and the ids that mean none make no sequence."""
        sequences = sequences_of("walks")
        for key in (0, ""):
            result = client.call(
                "infer", "walks", inputs_of(sequences), sequence_id=key
            )
            assert_same(result, expected(http, "walks", sequences))

    def test_not_begun(self, client):
        """A sequence that has not begun is told to, in Triton's words."""
        error = go_on(client, "walks", "new")
        assert error.status() == "400"
        assert "must specify the START flag on its first request" in error.message()

    def test_refused_part(self, client, http):
        """A part that is refused changes nothing: the sequence goes on."""
        (whole,) = sequences_of("walks", [6])
        options = {"sequence_id": 11, "sequence_start": True}
        client.call("infer", "walks", inputs_of([whole[:2]]), **options)
        options = {"sequence_id": 11}
        client.refused("infer", "walks", inputs_of([whole] * 2), **options)
        options |= {"sequence_end": True}
        result = client.call("infer", "walks", inputs_of([whole[2:]]), **options)
        assert_same(result, expected(http, "walks", [whole]))

    def test_refusals(self, client):
        """A network of both directions, and more than one sequence, can't go on."""
        options = {"sequence_id": 3, "sequence_start": True}
        error = client.refused(
            "infer", "both", inputs_of(sequences_of("both", [2])), **options
        )
        assert error.status() == "400"
        assert "bidirectional" in error.message()
        error = client.refused(
            "infer", "walks", inputs_of(sequences_of("walks")), **options
        )
        assert error.status() == "400"
        assert "batch size 1" in error.message()


def go_on(client, name, key):
    """The refusal of a part of a sequence that isn't there."""
    inputs = inputs_of(sequences_of(name, [2]))
    return client.refused("infer", name, inputs, sequence_id=key)


FRAMES = np.zeros((2, 5, 3), np.float32)
BROKEN = [
    pytest.param([tensor("frames", FRAMES[..., :2])], "inputs[0].shape", id="features"),
    pytest.param([tensor("frames", FRAMES[0])], "inputs[0].shape", id="no-batch"),
    pytest.param([tensor("frames", FRAMES[:0])], "inputs[0].shape", id="empty"),
    pytest.param(
        [tensor("frames", FRAMES.astype(np.float64))], "inputs[0].datatype", id="FP64"
    ),
    pytest.param(
        [tensor("frames", FRAMES), tensor("lengths", np.array([5, 5]))],
        "inputs[1].datatype",
        id="INT64",
    ),
    pytest.param([tensor("sequences", FRAMES)], "inputs[0].name", id="name"),
    pytest.param([tensor("frames", FRAMES)] * 2, "inputs[1].name", id="twice"),
    pytest.param(
        [tensor("lengths", np.array([5, 5], np.int32))], "frames", id="no-frames"
    ),
    pytest.param(
        [tensor("frames", FRAMES), tensor("lengths", np.array([5], np.int32))],
        "lengths",
        id="too-few-lengths",
    ),
    pytest.param(
        [tensor("frames", FRAMES), tensor("lengths", np.array([5, 6], np.int32))],
        "lengths[1]",
        id="too-long",
    ),
    pytest.param(
        [tensor("frames", np.full_like(FRAMES, np.nan))], "frames[0]", id="NaN"
    ),
    pytest.param(
        [tensor("frames", np.full_like(FRAMES, np.nan), binary=False)],
        "JSON",
        id="NaN-in-JSON",
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(("inputs", "named"), BROKEN)
    def test_inputs(self, client, inputs, named):
        """Tensors that a model can't take are refused by the member at fault."""
        error = client.refused("infer", "walks", inputs)
        assert error.status() == "400"
        assert named in error.message()

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            pytest.param(
                {"outputs": [InferRequestedOutput("logits")]}, "outputs", id="output"
            ),
            pytest.param({"timeout": -1}, "parameters.timeout", id="timeout"),
            pytest.param(
                {"sequence_id": "x" * 257}, "parameters.sequence_id", id="long-id"
            ),
            pytest.param(
                {"sequence_id": 1.5}, "parameters.sequence_id", id="fractional-id"
            ),
        ],
    )
    def test_options(self, client, options, named):
        """And so is what else is asked for."""
        error = client.refused("infer", "walks", [tensor("frames", FRAMES)], **options)
        assert error.status() == "400"
        assert named in error.message()

    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            pytest.param("infer", ([tensor("frames", FRAMES)],), id="infer"),
            pytest.param("get_model_metadata", (), id="metadata"),
            pytest.param("get_model_config", (), id="config"),
            pytest.param("get_inference_statistics", (), id="statistics"),
        ],
    )
    def test_unknown_model(self, client, method, arguments):
        """A model that there is not is refused in Triton's words."""
        for name, version in (("nothing", ""), ("walks", "9"), ("walks@9", "")):
            options = {"model_version": version}
            error = client.refused(method, name, *arguments, **options)
            assert error.status() == "404"
            assert "Request for unknown model" in error.message()

    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            pytest.param("get_system_shared_memory_status", (), id="system-status"),
            pytest.param(
                "register_system_shared_memory", ("a", "/a", 60), id="system-register"
            ),
            pytest.param("unregister_system_shared_memory", (), id="system-unregister"),
            pytest.param("get_cuda_shared_memory_status", ("a",), id="cuda-status"),
            pytest.param(
                "register_cuda_shared_memory", ("a", "aGFuZGxl", 0, 60), id="cuda"
            ),
            pytest.param("unregister_cuda_shared_memory", ("a",), id="cuda-unregister"),
            pytest.param("get_trace_settings", (), id="trace"),
            pytest.param("get_trace_settings", ("walks",), id="trace-of-model"),
            pytest.param(
                "update_trace_settings", ("walks", {"trace_rate": "1"}), id="set-trace"
            ),
            pytest.param("get_log_settings", (), id="log"),
            pytest.param("update_log_settings", ({"log_info": True},), id="set-log"),
        ],
    )
    def test_not_served(self, client, method, arguments):
        """What the service refuses on purpose is refused readably."""
        assert client.refused(method, *arguments).status() == "404"

    def test_shared_memory(self, client):
        """A tensor that would be in shared memory is refused."""
        made = InferInput("frames", [2, 5, 3], "FP32")
        made.set_shared_memory("a", FRAMES.nbytes)
        error = client.refused("infer", "walks", [made])
        assert error.status() == "400"
        assert "inputs[0]" in error.message()
