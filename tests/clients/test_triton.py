"""Triton's own client, unmodified, against the running service: the synchronous one, and
(slow) all the same with the asynchronous one."""

import itertools

import numpy as np
import pytest
from tritonclient import http as plain
from tritonclient.http import InferInput, InferRequestedOutput

from tests.clients.triton import SERVED, assert_same, inputs_of, outputs_of, tensor
from tests.support.servers import CLASSES, LENGTHS, TASKS, native_answers, sequences_of

LENGTH = "inference-header-content-length"
ENCODINGS = (None, "gzip", "deflate")


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
        answers = native_answers(http, "walks", sequences)
        for name, version in [("walks@1", ""), ("walks@latest", ""), ("walks", "1")]:
            assert client.call("is_model_ready", name, version)
            assert client.call("get_model_metadata", name, version)["name"] == "walks"
            result = client.call("infer", name, inputs_of(sequences), version)
            response = result.get_response()
            assert (response["model_name"], response["model_version"]) == ("walks", "1")
            assert_same(result, answers)


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
            assert_same(result, native_answers(http, name, sequences))

    def test_one_length(self, client, http):
        """Sequences of one length need no `lengths`, which may also be a column."""
        for name in TASKS:
            sequences = sequences_of(name, [5, 5, 5])
            answers = native_answers(http, name, sequences)
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
            answers = native_answers(http, name, sequences)
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
        assert_same(result, native_answers(http, "walks", sequences))

    def test_timeout(self, client, http):
        """A request is 504 after its timeout, and the next one is answered."""
        sequences = sequences_of("both", [900] * 8)
        error = client.refused("infer", "both", inputs_of(sequences), timeout=1)
        assert error.status() == "504"
        sequences = sequences_of("both")
        result = client.call("infer", "both", inputs_of(sequences))
        assert_same(result, native_answers(http, "both", sequences))

    def test_concurrent(self, client, http):
        """Concurrent requests get their own answers."""
        requests = [sequences_of("tags", [1 + k % 9, 3]) for k in range(24)]
        results = client.infer_all("tags", [inputs_of(s) for s in requests])
        for sequences, result in zip(requests, results, strict=True):
            assert_same(result, native_answers(http, "tags", sequences))

    def test_bodies(self, http):
        """Bodies written and read by the client, but sent by another one, are compressed
        as that one accepts."""
        sequences = sequences_of("tags")
        answers = native_answers(http, "tags", sequences)
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
            assert_same(result, native_answers(http, name, sequences))


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
    ([tensor("frames", np.full_like(FRAMES, np.nan), binary=False)], "NaN"),
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
