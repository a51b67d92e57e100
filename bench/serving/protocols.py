"""The same sequences asked in each of the service's protocols.

    python -m bench.serving.protocols

One sequence of 100 steps of 28 features a request (W1 of `bench.serving`), 32
connections, each protocol in turn at one server. Binary tensors of 4 bytes stand
beside JSON of four decimals, and beside JSON that holds every digit of a float32.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import uvloop

from bench import machine, networks, workloads
from bench.http_connection import request
from bench.load_generator import Closed, Spec
from bench.serving.competitors import _ours

LENGTH = "Inference-Header-Content-Length"


def native(frames: np.ndarray, name: str) -> bytes:
    body = {"model": name, "sequences": [frames]}
    return request("/classify", _json(body))


def rows(frames: np.ndarray, name: str) -> bytes:
    return request(f"/v1/models/{name}:predict", _json({"instances": [frames]}))


def tensors(frames: np.ndarray, name: str) -> bytes:
    one = {"name": "frames", "shape": [1, *frames.shape], "datatype": "FP32"}
    body = {"inputs": [one | {"data": frames.ravel()}]}
    return request(f"/v2/models/{name}/infer", _json(body))


def binary(frames: np.ndarray, name: str) -> bytes:
    one = {"name": "frames", "shape": [1, *frames.shape], "datatype": "FP32"}
    one["parameters"] = {"binary_data_size": 4 * frames.size}
    head = _json({"inputs": [one], "parameters": {"binary_data_output": True}})
    made = request(f"/v2/models/{name}/infer", head + frames.astype("<f4").tobytes())
    first, _, rest = made.partition(b"\r\n")
    return first + f"\r\n{LENGTH}: {len(head)}\r\n".encode() + rest


FORMS: dict[str, Callable[[np.ndarray, str], bytes]] = {
    "/classify, JSON": native,
    "/v1 :predict, JSON": rows,
    "/v2 infer, JSON": tensors,
    "/v2 infer, binary": binary,
}


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def probabilities(form: str, body: bytes) -> np.ndarray:
    """[C], of an answer."""
    if form.endswith("binary"):
        return np.frombuffer(body[-4 * networks.CLASSES :], "<f4")
    told = orjson.loads(body)
    if "outputs" in told:
        return np.array(told["outputs"][0]["data"])
    (one,) = told["predictions"]
    return np.array(one["probabilities"] if isinstance(one, dict) else one)


def run(spec: Spec, form: str, requests: list[bytes], right: np.ndarray) -> float:
    """Requests a second; stops where an answer is wrong."""
    load = Closed(spec, requests)

    async def drive() -> dict[str, Any]:
        try:
            return await load.run()
        finally:
            load.close()

    seen = uvloop.run(drive())
    for record in load.records[-len(requests) :]:
        assert record.status == 200, record.body
        difference = probabilities(form, record.body) - right[record.place]
        assert np.abs(difference).max() < 1e-4, form
    counted = [r for r in load.records if load.counts(r, seen["start"], seen["stop"])]
    return len(counted) / (seen["stop"] - seen["start"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving.protocols",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", default=["lstm", "small"])
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(machine.describe()))
    folder = networks.folder(networks.CACHE)
    for name in options.networks:
        compare(folder, name, options)


def compare(folder: Any, name: str, options: argparse.Namespace) -> None:
    pool = workloads.load(folder, name, "W1")
    with np.load(pool.folder / "answers.npz") as file:
        right = file["answers"]
    short = [frames.astype(np.float32) for frames in workloads.sequences("W1")]
    # What measurements are: numbers with all their digits.
    long = [frames + np.float32(1e-6) for frames in short]
    server = _ours(folder, name, "Unrolled float32")
    server.start()
    try:
        server.wait()
        made: dict[str, tuple[str, list[bytes]]] = {}
        for form, write in FORMS.items():
            made[form] = form, [write(frames, name) for frames in short]
            if form.endswith("JSON"):
                digits = [write(frames, name) for frames in long]
                made[f"{form}, all digits"] = form, digits
        spec = Spec(
            port=server.port,
            path="",
            folder="",
            seconds=options.seconds,
            connections=options.connections,
        )
        rates: dict[str, list[float]] = {told: [] for told in made}
        for turn in range(options.turns):
            for told, (form, requests) in made.items():
                one = run(replace(spec, seed=turn), form, requests, right)
                rates[told].append(one)
    finally:
        server.stop()
    best = statistics.median(rates["/v2 infer, binary"])
    print(f"\n{name}: requests a second, binary over this, bytes of a request")
    for told, of in rates.items():
        rate = statistics.median(of)
        size = statistics.mean(map(len, made[told][1]))
        print(f"{told:34} {rate:8.0f} {best / rate:6.2f}x {size:8.0f}")


if __name__ == "__main__":
    main()
