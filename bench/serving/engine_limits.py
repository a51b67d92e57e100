"""What the engine answers without HTTP: how much any server could at most.

    python -m bench.serving.engine_limits

Three ways to compute sequences as they come: batches padded to their longest, on
one session with all cores or on a session and a thread for each core; and the
service's own scheduler in a process for each core, which batches in lanes. The size
is that of a batch, or the number of lanes of each process.
"""

import argparse
import itertools
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench import machine, networks, workloads
from bench.serving.competitors import CORES

SIZES = [1, 4, 8, 16, 32, 64]


def padded(file: Path, made: list[np.ndarray], size: int, cores: bool, end: float):
    """Sequences a second of padded batches.

    Args:
        cores: one session with all of them; else one for each.
        end: seconds to measure.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES if cores else 1
    count = 1 if cores else CORES
    sessions = [onnxruntime.InferenceSession(str(file), options) for _ in range(count)]
    width = next(i.shape[1] for i in sessions[0].get_inputs() if i.name == "state")
    places, lock = itertools.cycle(range(0, len(made), size)), threading.Lock()
    done = [0] * count
    stop = time.perf_counter() + end

    def work(number: int) -> None:
        while time.perf_counter() < stop:
            with lock:
                place = next(places)
            batch = made[place : place + size]
            sessions[number].run(["probabilities"], _batch(batch, width))
            done[number] += len(batch)

    begun = time.perf_counter()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - begun)


def _batch(sequences: list[np.ndarray], width: int) -> dict[str, np.ndarray]:
    lengths = np.array([len(frames) for frames in sequences], np.int32)
    shape = len(sequences), lengths.max(), sequences[0].shape[1]
    frames = np.zeros(shape, np.float32)
    for row, sequence in zip(frames, sequences, strict=True):
        row[: len(sequence)] = sequence
    state = np.zeros((len(sequences), width), np.float32)
    return {"frames": frames, "lengths": lengths, "state": state}


def laned(bundle: Path, precision: str, name: str, lanes: int, end: float) -> float:
    """Sequences a second of a scheduler with so many lanes, always all in use."""
    from model.bundle.bundle import read
    from service.settings import Settings
    from service.worker import cost, engine
    from service.worker.protocol import JobResult
    from service.worker.scheduler import Scheduler

    settings = Settings(precision=precision, batch_rows=lanes)
    found = read(bundle)
    loaded = engine.load(found, settings)
    price = cost.measure(loaded.engine, found.metadata)
    scheduler = Scheduler(loaded.engine, found.metadata, settings, cost=price)
    made = itertools.cycle(f.astype(np.float32) for f in workloads.sequences(name))
    numbers = itertools.count()
    for _ in range(lanes):
        scheduler.add(next(numbers), next(made))
    done, begun = 0, time.perf_counter()
    while time.perf_counter() < begun + end:
        for message in scheduler.run_batch():
            if isinstance(message, JobResult):
                done += 1
                scheduler.add(next(numbers), next(made))
    return done / (time.perf_counter() - begun)


def in_lanes(*given: Any) -> float:
    """The same on all cores."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, mp_context=spawn) as pool:
        return sum(
            f.result() for f in [pool.submit(laned, *given) for _ in range(CORES)]
        )


def ways(folder: Path, network: str, name: str, seconds: float) -> Iterator[tuple]:
    """(way, size, sequences a second) of each way at each size."""
    made = [frames.astype(np.float32) for frames in workloads.sequences(name)]
    file = networks.onnx(folder, network)
    bundle = folder / "bundles" / network / "1"
    kinds = ["float32", *["int8"] * (networks.NETWORKS[network].cell == "lstm")]
    for size in SIZES:
        yield "padded, all cores", size, padded(file, made, size, True, seconds)
        yield "padded, thread a core", size, padded(file, made, size, False, seconds)
        for kind in kinds:
            rate = in_lanes(bundle, kind, name, size, seconds)
            yield f"in lanes, {kind}", size, rate


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving.engine_limits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=networks.NETWORKS, default=["lstm", "gru"])
    add("--workloads", nargs="+", choices=workloads.NAMES, default=["W1", "W2"])
    add("--seconds", type=float, default=1)
    add("--cache", type=Path, default=networks.CACHE)
    options = parser.parse_args()
    print("{cores} cores, {processor}, load {load:.2f}".format(**machine.describe()))
    folder = networks.folder(options.cache)
    for network, name in itertools.product(options.networks, options.workloads):
        print(f"\n{network}, {name} ({workloads.TEXTS[name]}): sequences/s at sizes")
        print(f"{'':22}" + "".join(f"{size:>9}" for size in SIZES) + "     best")
        found: dict[str, list[float]] = {}
        for way, _, rate in ways(folder, network, name, options.seconds):
            found.setdefault(way, []).append(rate)
        for way, rates in found.items():
            texts = "".join(f"{rate:9.1f}" for rate in rates)
            print(f"{way:22}{texts}{max(rates):9.1f}")


if __name__ == "__main__":
    main()
