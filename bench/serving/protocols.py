"""Throughput of the service's protocols: the same sequences in each.

    python -m bench.serving.protocols

One sequence of 100 steps of 28 features a request (W1 of `bench.serving`), 32
connections, each protocol in turn at one server. Binary tensors of 4 bytes stand beside
JSON of four decimals, and beside JSON with every digit of a float32.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench import networks, workloads
from bench.environment import describe_machine, parser
from bench.http_connection import post_request
from bench.load_generator import ClosedLoop, Spec, drive
from bench.serving.competitors import ours

BINARY = "/v2 infer, binary"
LENGTH = "Inference-Header-Content-Length"


def native(frames: np.ndarray, name: str) -> bytes:
    body = {"model": name, "sequences": [frames]}
    return post_request("/classify", _json(body))


def tf_serving(frames: np.ndarray, name: str) -> bytes:
    path = f"/v1/models/{name}:predict"
    return post_request(path, _json({"instances": [frames]}))


def open_inference(frames: np.ndarray, name: str) -> bytes:
    tensor = _tensor(frames) | {"data": frames.ravel()}
    return post_request(f"/v2/models/{name}/infer", _json({"inputs": [tensor]}))


def open_inference_binary(frames: np.ndarray, name: str) -> bytes:
    tensor = _tensor(frames) | {"parameters": {"binary_data_size": 4 * frames.size}}
    parameters = {"binary_data_output": True}
    head = _json({"inputs": [tensor], "parameters": parameters})
    body = head + frames.astype("<f4").tobytes()
    line, end, rest = post_request(f"/v2/models/{name}/infer", body).partition(b"\r\n")
    return line + end + f"{LENGTH}: {len(head)}\r\n".encode() + rest


def _tensor(frames: np.ndarray) -> dict[str, Any]:
    return {"name": "frames", "shape": [1, *frames.shape], "datatype": "FP32"}


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


FORMATS: dict[str, Callable[[np.ndarray, str], bytes]] = {
    "/classify, JSON": native,
    "/v1 :predict, JSON": tf_serving,
    "/v2 infer, JSON": open_inference,
    BINARY: open_inference_binary,
}


def probabilities(format: str, body: bytes) -> np.ndarray:
    """The probabilities [C] of a response."""
    if format == BINARY:
        return np.frombuffer(body[-4 * networks.CLASSES :], "<f4")
    response = orjson.loads(body)
    if "outputs" in response:
        return np.array(response["outputs"][0]["data"])
    (row,) = response["predictions"]
    return np.array(row["probabilities"] if isinstance(row, dict) else row)


def throughput(
    spec: Spec, format: str, requests: list[bytes], expected: np.ndarray
) -> float:
    """Requests a second; fails if a response is wrong."""
    loop = ClosedLoop(spec, requests)
    times = drive(loop)
    start, stop = times["start"], times["stop"]
    for record in loop.records[-len(requests) :]:
        assert record.status == 200, record.body
        difference = probabilities(format, record.body) - expected[record.place]
        assert np.abs(difference).max() < 1e-4, format
    counted = [record for record in loop.records if loop.counts(record, start, stop)]
    return len(counted) / (stop - start)


def pool(folder: Path, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The sequences of W1, and the expected probabilities."""
    workload = workloads.load(folder, name, "W1")
    with np.load(workload.folder / "answers.npz") as file:
        expected = file["answers"]
    sequences = [frames.astype(np.float32) for frames in workloads.sequences("W1")]
    return sequences, expected


def compare(folder: Path, name: str, options: argparse.Namespace) -> None:
    short, expected = pool(folder, name)
    # Like measurements: numbers with all their digits.
    long = [frames + np.float32(1e-6) for frames in short]
    requests: dict[str, tuple[str, list[bytes]]] = {}
    for format, write in FORMATS.items():
        requests[format] = format, [write(frames, name) for frames in short]
        if format.endswith("JSON"):
            digits = [write(frames, name) for frames in long]
            requests[f"{format}, all digits"] = format, digits
    rates: dict[str, list[float]] = {title: [] for title in requests}
    with ours(folder, name) as server:
        spec = Spec(server.port, "", "", options.seconds, connections=options.connections)  # fmt: skip
        for turn in range(options.turns):
            for title, (format, data) in requests.items():
                rate = throughput(replace(spec, seed=turn), format, data, expected)
                rates[title].append(rate)
    binary = statistics.median(rates[BINARY])
    print(f"\n{name}: requests a second, binary over this, bytes of a request")
    for title, values in rates.items():
        rate = statistics.median(values)
        size = statistics.mean(map(len, requests[title][1]))
        print(f"{title:34} {rate:8.0f} {binary / rate:6.2f}x {size:8.0f}")


def main() -> None:
    command = parser("bench.serving.protocols", __doc__)
    add = command.add_argument
    add("--networks", nargs="+", default=["lstm", "small"])
    add("--connections", type=int, default=32)
    add("--seconds", type=float, default=4, help="of a run")
    add("--turns", type=int, default=3)
    options = command.parse_args()
    describe_machine()
    folder = networks.folder(networks.CACHE)
    for name in options.networks:
        compare(folder, name, options)


if __name__ == "__main__":
    main()
