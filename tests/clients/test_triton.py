"""Triton's own client, unmodified, against the running service: the synchronous one, and
(slow) all the same with the asynchronous one."""

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
LENGTHS = [1, 7, 120, 3]  # the labels of so many steps are compressed
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
# What the client says of responses that it can't read.
UNREADABLE = ("an exception occurred in the client", "empty response")
ENCODINGS = (None, "gzip", "deflate")


class Triton:
    """One of the clients; `call` works the same for both."""

    def __init__(self, runner, client):
        self._runner, self._client = runner, client

    def call(self, method, *args, **options):
        result = getattr(self._client, method)(*args, **options)
        return self._runner.run(result) if self._runner else result

    def infer_all(self, name, inputs):
        """The results of concurrent requests."""
        if self._runner is None:
            requests = [self._client.async_infer(name, tensors) for tensors in inputs]
            return [request.get_result(timeout=SECONDS) for request in requests]

        async def gather():
            calls = [self._client.infer(name, tensors) for tensors in inputs]
            return await asyncio.gather(*calls)

        return self._runner.run(gather())

    def refused(self, method, *args, **options):
        """The error of a call, whose message is the service's own."""
        with pytest.raises(InferenceServerException) as caught:
            self.call(method, *args, **options)
        message = caught.value.message()
        assert message
        assert not any(text in message for text in UNREADABLE), message
        return caught.value


@contextmanager
def connected(kind, url):
    address = url.removeprefix("http://")
    if kind == "plain":
        with plain.InferenceServerClient(address, concurrency=4) as client:
            yield Triton(None, client)
        return

    async def connect():
        return aio.InferenceServerClient(address)

    with asyncio.Runner() as runner:
        client = runner.run(connect())
        try:
            yield Triton(runner, client)
        finally:
            runner.run(client.close())


@pytest.fixture(
    scope="module", params=["plain", pytest.param("aio", marks=pytest.mark.slow)]
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def client(kind, server):
    with connected(kind, server) as triton:
        yield triton


@pytest.fixture
def http(running_server):
    return running_server.http


@pytest.fixture
def owned(bundles, tmp_path):
    """A folder of bundles, and a service of its own with an open repository."""
    root = tmp_path / "owned"
    for name in ("walks", "tags"):
        shutil.copytree(bundles / name, root / name)
    settings = Settings(port=0, bundles=root, workers=1, admin=True, reload_seconds=0)
    with running(settings, start=spawn.thread(engines.ENGINES)) as service:
        yield root, service


def sequences_of(name, lengths=LENGTHS):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, length) for length in lengths]


def expected(http, name, sequences):
    """The answers of the service's own API."""
    body = {"model": name, "sequences": [frames.tolist() for frames in sequences]}
    response = http.post(f"/{TASKS[name]}", json=body)
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    return [np.array(p["probabilities"], np.float32) for p in predictions]


def tensor(name, array, *, binary=True):
    kinds = {"float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64"}
    result = InferInput(name, list(array.shape), kinds[str(array.dtype)])
    result.set_data_from_numpy(array, binary_data=binary)
    return result


def inputs_of(sequences, *, binary=True, padding=0.0):
    """Padded frames, and the lengths."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    frames = np.full((len(sequences), lengths.max(), 3), padding, np.float32)
    for row, sequence in zip(frames, sequences, strict=True):
        row[: len(sequence)] = sequence
    return [
        tensor("frames", frames, binary=binary),
        tensor("lengths", lengths, binary=binary),
    ]


def outputs_of(binary, count=0):
    """The requested output; None: the client's default."""
    if binary is None:
        return None
    return [
        InferRequestedOutput("probabilities", binary_data=binary, class_count=count)
    ]


def assert_same(result, answers):
    """Check that the result is the answers, padded with zeros."""
    probabilities = result.as_numpy("probabilities")
    assert probabilities.dtype == np.float32
    for row, answer in zip(probabilities, answers, strict=True):
        unpadded = row if answer.ndim == 1 else row[: len(answer)]
        np.testing.assert_allclose(unpadded, answer, atol=1e-5, strict=True)
        if answer.ndim == 2:
            assert not row[len(answer) :].any()


class TestAbout:
    def test_health(self, client):
        """The server and each model are alive and ready, with and without a version."""
        assert client.call("is_server_live")
        assert client.call("is_server_ready")
        for name in TASKS:
            assert client.call("is_model_ready", name)
            assert client.call("is_model_ready", name, "1")
        assert not client.call("is_model_ready", "walks", "2")
        assert not client.call("is_model_ready", "nothing")

    def test_server_metadata(self, client):
        """The server has a name, and lists just the extensions that it supports."""
        about = client.call("get_server_metadata", query_params={"a": [1, 2]})
        assert set(about) == {"name", "version", "extensions"}
        assert about["name"] == "unrolled"
        assert set(about["extensions"]) == SERVED

    def test_model_metadata(self, client):
        """A model's metadata and configuration have the tensors' names and shapes; the
        configuration without the batch."""
        for name, version in [*((name, "") for name in TASKS), ("walks", "1")]:
            steps = [-1] if TASKS[name] == "label" else []
            shape = [*steps, len(CLASSES[name])]
            about = client.call("get_model_metadata", name, version)
            assert about["name"] == name
            assert about["versions"] == ["1"]
            assert about["platform"] in ("onnxruntime_onnx", "tensorflow_savedmodel")
            inputs = {i["name"]: (i["datatype"], i["shape"]) for i in about["inputs"]}
            assert inputs["frames"] == ("FP32", [-1, -1, 3])
            assert inputs["lengths"][0] == "INT32"
            (output,) = about["outputs"]
            expected = ("probabilities", [-1, *shape])
            assert (output["name"], output["shape"]) == expected
            config = client.call("get_model_config", name, version)
            assert config["name"] == name
            assert config["max_batch_size"] == 256
            frames, lengths = config["input"]
            assert (frames["data_type"], frames["dims"]) == ("TYPE_FP32", [-1, 3])
            assert (lengths["name"], lengths["optional"]) == ("lengths", True)
            assert config["output"][0]["dims"] == shape

    def test_statistics(self, client):
        """The statistics are of all models, of one or of a version, and count each
        request and each of its sequences."""
        models = client.call("get_inference_statistics")["model_stats"]
        names = {(model["name"], model["version"]) for model in models}
        assert names == {(name, "1") for name in TASKS}
        (before,) = client.call("get_inference_statistics", "walks")["model_stats"]
        client.call("infer", "walks", inputs_of(sequences_of("walks")))
        client.refused("infer", "walks", [tensor("x", np.zeros((1, 1), np.float32))])
        (after,) = client.call("get_inference_statistics", "walks", "1")["model_stats"]
        count = after["inference_count"] - before["inference_count"]
        assert count == len(LENGTHS)
        assert after["execution_count"] > before["execution_count"]
        assert after["last_inference"] >= before["last_inference"]
        for part in ("success", "queue", "compute_infer", "compute_output"):
            first, second = (s["inference_stats"][part] for s in (before, after))
            assert second["count"] == first["count"] + 1, part
            assert second["ns"] >= first["ns"], part

    def test_names(self, client, http):
        """A version or a label may stand in the name."""
        sequences = sequences_of("walks")
        answers = expected(http, "walks", sequences)
        for name, version in [("walks@1", ""), ("walks@latest", ""), ("walks", "1")]:
            assert client.call("is_model_ready", name, version)
            assert client.call("get_model_metadata", name, version)["name"] == "walks"
            result = client.call("infer", name, inputs_of(sequences), version)
            response = result.get_response()
            assert (response["model_name"], response["model_version"]) == ("walks", "1")
            assert_same(result, answers)


class TestRepository:
    def test_closed(self, client):
        """Without the setting the repository is closed; the error names the setting."""
        for method in ("get_model_repository_index", "load_model", "unload_model"):
            names = () if method.endswith("index") else ("walks",)
            error = client.refused(method, *names)
            assert error.status() == "403"
            assert "UNROLLED_ADMIN" in error.message()
        assert client.call("is_model_ready", "walks")

    def test_unload_and_load(self, kind, owned):
        """An unloaded model is not served until it is loaded."""
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
            states = {
                model["name"]: (model["state"], model["reason"]) for model in index
            }
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
        """Loading may choose the batching that a configuration announces."""
        _, service = owned
        with connected(kind, service.url) as client:
            config = '{"sequence_batching": {}}'
            for override, batching in ((config, "sequence"), (None, "dynamic")):
                client.call("load_model", "walks", config=override)
                fields = client.call("get_model_config", "walks")
                kinds = {"sequence_batching", "dynamic_batching"} & set(fields)
                assert kinds == {f"{batching}_batching"}
                assert "dynamic_batching" in client.call("get_model_config", "tags")

    def test_new_version(self, kind, owned):
        """Loading serves a new version, while a sequence keeps its own; a broken version is
        refused, and the one before it is still served."""
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
            states = {(m["name"], m["version"]): m["state"] for m in index}
            assert states["walks", "2"] == "READY"
            assert states["walks", "3"] == "UNAVAILABLE"
            result = client.call("infer", "walks", inputs)
            assert result.get_response()["model_version"] == "2"


class TestInfer:
    def test_encodings(self, client, http):
        """However a request and its response are encoded, the answer is the same, and
        padding changes nothing."""
        encodings = itertools.cycle(itertools.product(ENCODINGS, ENCODINGS))
        for binary, output, name in itertools.product(
            (True, False), (None, True, False), TASKS
        ):
            sequences, (sent, accepted) = sequences_of(name), next(encodings)
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
        """A request without an id gets one."""
        ids = set()
        for _ in range(2):
            result = client.call("infer", "walks", inputs_of(sequences_of("walks")))
            ids.add(result.get_response()["id"])
        assert len(ids) == 2
        assert all(type(id) is str and id for id in ids)

    def test_classification(self, client, http):
        """The most probable classes, best first, as texts; empty ones as padding."""
        for name, count, binary in itertools.product(
            ("walks", "tags"), (1, 2, 100), (True, False)
        ):
            sequences, classes = sequences_of(name, [2, 9, 4]), CLASSES[name]
            outputs = outputs_of(binary, count)
            result = client.call("infer", name, inputs_of(sequences), outputs=outputs)
            texts = result.as_numpy("probabilities")
            steps, shown = [9] if name == "tags" else [], min(count, len(classes))
            assert texts.shape == (3, *steps, shown)
            answers = expected(http, name, sequences)
            for row, answer in zip(texts, answers, strict=True):
                rows, answer_rows = np.atleast_2d(row), np.atleast_2d(answer)
                assert all(not text for text in rows[len(answer_rows) :].ravel())
                for row_texts, numbers in zip(rows, answer_rows, strict=False):
                    best = np.argsort(-numbers)[:shown]
                    for text, index in zip(row_texts, best, strict=True):
                        text = text.decode() if isinstance(text, bytes) else text
                        value, place, label = text.split(":")
                        assert (int(place), label) == (index, classes[index])
                        assert float(value) == pytest.approx(numbers[index], abs=1e-5)

    def test_parameters(self, client, http):
        """A priority, a long timeout and unknown parameters change nothing."""
        sequences = sequences_of("walks")
        options = {"priority": 3, "timeout": 60_000_000, "parameters": {"ours": "x"}}
        result = client.call("infer", "walks", inputs_of(sequences), **options)
        assert_same(result, expected(http, "walks", sequences))

    def test_timeout(self, client, http):
        """A request is 504 after its timeout, and the next one is answered."""
        sequences = sequences_of("both", [900] * 8)
        error = client.refused("infer", "both", inputs_of(sequences), timeout=1)
        assert error.status() == "504"
        sequences = sequences_of("both")
        result = client.call("infer", "both", inputs_of(sequences))
        assert_same(result, expected(http, "both", sequences))

    def test_concurrent(self, client, http):
        """Concurrent requests get their own answers."""
        requests = [sequences_of("tags", [1 + k % 9, 3]) for k in range(24)]
        results = client.infer_all("tags", [inputs_of(s) for s in requests])
        for sequences, result in zip(requests, results, strict=True):
            assert_same(result, expected(http, "tags", sequences))

    def test_bodies(self, http):
        """Bodies written and read by the client, but sent by another one, are compressed
        as that one accepts."""
        sequences = sequences_of("tags")
        answers = expected(http, "tags", sequences)
        for binary, encoding in itertools.product((True, False), ENCODINGS):
            body, size = plain.InferenceServerClient.generate_request_body(
                inputs_of(sequences), outputs=outputs_of(binary)
            )
            headers = {LENGTH: str(size), "accept-encoding": encoding or "br, zstd"}
            path = "/v2/models/tags/infer"
            with http.stream("POST", path, content=body, headers=headers) as response:
                content = b"".join(response.iter_raw())
            assert response.status_code == 200
            assert response.headers.get("content-encoding") == encoding
            size = response.headers.get(LENGTH)
            assert (size is not None) is binary
            result = plain.InferenceServerClient.parse_response_body(
                content, header_length=size, content_encoding=encoding
            )
            assert_same(result, answers)

    def test_raw(self, http):
        """A body of nothing but one sequence's numbers has a binary response."""
        for name in TASKS:
            (frames,) = sequences = sequences_of(name, [6])
            path = f"/v2/models/{name}/infer"
            response = http.post(path, content=frames.tobytes(), headers={LENGTH: "0"})
            assert response.status_code == 200, response.text
            result = plain.InferenceServerClient.parse_response_body(
                response.content, header_length=response.headers[LENGTH]
            )
            assert_same(result, expected(http, name, sequences))


class TestSequences:
    def test_whole(self, client, http):
        """A sequence in parts under an id gets the answers of the whole one."""
        for name, id in (
            ("walks", 7),
            ("tags", 7),
            ("walks", 2**64 - 1),
            ("tags", "café 7"),
        ):
            (whole,) = sequences_of(name, [23])
            (answer,) = expected(http, name, [whole])
            parts = []
            for start, end in itertools.pairwise([0, 1, 9, 22, 23]):
                result = client.call(
                    "infer",
                    name,
                    inputs_of([whole[start:end]]),
                    sequence_id=id,
                    sequence_start=start == 0,
                    sequence_end=end == 23,
                )
                (part,) = result.as_numpy("probabilities")
                parts.append(part)
                if name == "walks":
                    (so_far,) = expected(http, name, [whole[:end]])
                    np.testing.assert_allclose(part, so_far, atol=1e-5)
            if name == "tags":
                np.testing.assert_allclose(np.concatenate(parts), answer, atol=1e-5)
            assert refused_continuation(client, name, id).status() == "400"

    def test_interleaved(self, client, http):
        """Sequences with several ids, a number and its text among them, and of two
        models, are independent."""
        keys = [("walks", 1), ("walks", "1"), ("walks", 2), ("tags", 1), ("tags", "b")]
        rng = np.random.default_rng(3)
        wholes = {key: random_frames(rng, 12) for key in keys}
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

    def test_restart(self, client, http):
        """START of an existing sequence restarts it."""
        first, second = sequences_of("walks", [5, 5])
        for frames, end in ((first, False), (second, True)):
            flags = {"sequence_start": True, "sequence_end": end}
            inputs = inputs_of([frames])
            result = client.call("infer", "walks", inputs, sequence_id=9, **flags)
            assert_same(result, expected(http, "walks", [frames]))

    def test_no_sequence(self, client, http):
        """The ids 0 and "" mean no sequence; one that has not started is an error."""
        sequences = sequences_of("walks")
        for id in (0, ""):
            inputs = inputs_of(sequences)
            result = client.call("infer", "walks", inputs, sequence_id=id)
            assert_same(result, expected(http, "walks", sequences))
        error = refused_continuation(client, "walks", "new")
        assert error.status() == "400"
        assert "must specify the START flag on its first request" in error.message()

    def test_refused_part(self, client, http):
        """A refused part changes nothing: the sequence continues."""
        (whole,) = sequences_of("walks", [6])
        options = {"sequence_id": 11, "sequence_start": True}
        client.call("infer", "walks", inputs_of([whole[:2]]), **options)
        options = {"sequence_id": 11}
        client.refused("infer", "walks", inputs_of([whole] * 2), **options)
        options |= {"sequence_end": True}
        result = client.call("infer", "walks", inputs_of([whole[2:]]), **options)
        assert_same(result, expected(http, "walks", [whole]))

    def test_refusals(self, client):
        """Bidirectional networks and batches of several sequences are refused."""
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


def refused_continuation(client, name, id):
    inputs = inputs_of(sequences_of(name, [2]))
    return client.refused("infer", name, inputs, sequence_id=id)


FRAMES = np.zeros((2, 5, 3), np.float32)
LENGTHS_5 = np.array([5, 5], np.int32)
INVALID = [
    ([tensor("frames", FRAMES[..., :2])], "inputs[0].shape"),
    ([tensor("frames", FRAMES[0])], "inputs[0].shape"),
    ([tensor("frames", FRAMES[:0])], "inputs[0].shape"),
    ([tensor("frames", FRAMES.astype(np.float64))], "inputs[0].datatype"),
    (
        [tensor("frames", FRAMES), tensor("lengths", np.array([5, 5]))],
        "inputs[1].datatype",
    ),
    ([tensor("sequences", FRAMES)], "inputs[0].name"),
    ([tensor("frames", FRAMES)] * 2, "inputs[1].name"),
    ([tensor("lengths", LENGTHS_5)], "frames"),
    ([tensor("frames", FRAMES), tensor("lengths", LENGTHS_5[:1])], "lengths"),
    ([tensor("frames", FRAMES), tensor("lengths", LENGTHS_5 + 1)], "lengths[0]"),
    ([tensor("frames", np.full_like(FRAMES, np.nan))], "frames[0]"),
    ([tensor("frames", np.full_like(FRAMES, np.nan), binary=False)], "JSON"),
]


class TestRefusals:
    def test_inputs(self, client):
        """Invalid tensors and options are refused; the error names the field."""
        for inputs, field in INVALID:
            error = client.refused("infer", "walks", inputs)
            assert error.status() == "400"
            assert field in error.message()
        for options, field in (
            ({"outputs": [InferRequestedOutput("logits")]}, "outputs"),
            ({"timeout": -1}, "parameters.timeout"),
            ({"sequence_id": "x" * 257}, "parameters.sequence_id"),
            ({"sequence_id": 1.5}, "parameters.sequence_id"),
        ):
            inputs = [tensor("frames", FRAMES)]
            error = client.refused("infer", "walks", inputs, **options)
            assert error.status() == "400"
            assert field in error.message()

    def test_unknown_model(self, client):
        """An unknown model is refused in Triton's words."""
        for method, *arguments in (
            ("infer", [tensor("frames", FRAMES)]),
            ("get_model_metadata",),
            ("get_model_config",),
            ("get_inference_statistics",),
        ):
            for name, version in (("nothing", ""), ("walks", "9"), ("walks@9", "")):
                options = {"model_version": version}
                error = client.refused(method, name, *arguments, **options)
                assert error.status() == "404"
                assert "Request for unknown model" in error.message()

    def test_not_served(self, client):
        """Extensions that the service does not support have a readable error."""
        for method, *arguments in (
            ("get_system_shared_memory_status",),
            ("register_system_shared_memory", "a", "/a", 60),
            ("unregister_system_shared_memory",),
            ("get_cuda_shared_memory_status", "a"),
            ("register_cuda_shared_memory", "a", "aGFuZGxl", 0, 60),
            ("unregister_cuda_shared_memory", "a"),
            ("get_trace_settings",),
            ("get_trace_settings", "walks"),
            ("update_trace_settings", "walks", {"trace_rate": "1"}),
            ("get_log_settings",),
            ("update_log_settings", {"log_info": True}),
        ):
            assert client.refused(method, *arguments).status() == "404"

    def test_shared_memory(self, client):
        """A tensor in shared memory is refused."""
        frames = InferInput("frames", [2, 5, 3], "FP32")
        frames.set_shared_memory("a", FRAMES.nbytes)
        error = client.refused("infer", "walks", [frames])
        assert error.status() == "400"
        assert "inputs[0]" in error.message()
