"""Throughput of the engine without HTTP: the upper bound of any server.

    python -m bench.serving.engine_limits

Sequences are computed in three ways: in batches padded to the longest, by one session
with all cores or by a session and a thread for each core; and by the service's own
scheduler in a process for each core, which batches in lanes. The size is that of a
batch, or the number of lanes of each process.
"""

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

from bench import networks, workloads
from bench.environment import CORES, describe_machine, parser

SIZES = [1, 4, 8, 16, 32, 64]


def padded(
    file: Path, sequences: list[np.ndarray], size: int, all_cores: bool, seconds: float
) -> float:
    """Sequences a second in padded batches.

    Args:
        all_cores: one session with all cores; else one for each.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES if all_cores else 1
    count = 1 if all_cores else CORES
    sessions = [onnxruntime.InferenceSession(str(file), options) for _ in range(count)]
    width = next(i.shape[1] for i in sessions[0].get_inputs() if i.name == "state")
    places = itertools.cycle(range(0, len(sequences), size))
    lock, done = threading.Lock(), [0] * count
    start = time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() < start + seconds:
            with lock:
                place = next(places)
            batch = sequences[place : place + size]
            sessions[number].run(["probabilities"], _pad(batch, width))
            done[number] += len(batch)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def _pad(sequences: list[np.ndarray], width: int) -> dict[str, np.ndarray]:
    lengths = np.array([len(frames) for frames in sequences], np.int32)
    shape = len(sequences), lengths.max(), sequences[0].shape[1]
    frames = np.zeros(shape, np.float32)
    for row, sequence in zip(frames, sequences, strict=True):
        row[: len(sequence)] = sequence
    state = np.zeros((len(sequences), width), np.float32)
    return {"frames": frames, "lengths": lengths, "state": state}


def in_lanes(
    folder: Path, precision: str, name: str, lanes: int, seconds: float
) -> float:
    """Sequences a second of a scheduler whose lanes are always full."""
    from model.bundle.bundle import read
    from service.settings import Settings
    from service.worker import cost, engine
    from service.worker.protocol import JobResult
    from service.worker.scheduler import Scheduler

    settings = Settings(precision=precision, batch_rows=lanes)
    bundle = read(folder)
    loaded = engine.load(bundle, settings)
    measured = cost.measure(loaded.engine, bundle.metadata)
    scheduler = Scheduler(loaded.engine, bundle.metadata, settings, cost=measured)
    frames = (f.astype(np.float32) for f in workloads.sequences(name))
    sequences, numbers = itertools.cycle(frames), itertools.count()
    for _ in range(lanes):
        scheduler.add(next(numbers), next(sequences))
    done, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        for message in scheduler.run_batch():
            if isinstance(message, JobResult):
                done += 1
                scheduler.add(next(numbers), next(sequences))
    return done / (time.perf_counter() - start)


def on_all_cores(*arguments: Any) -> float:
    """`in_lanes` in a process for each core."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, mp_context=spawn) as pool:
        futures = [pool.submit(in_lanes, *arguments) for _ in range(CORES)]
        return sum(future.result() for future in futures)


def rates(folder: Path, network: str, name: str, seconds: float) -> Iterator[tuple]:
    """(way, sequences a second) of each way at each size."""
    sequences = [frames.astype(np.float32) for frames in workloads.sequences(name)]
    file = networks.onnx(folder, network)
    bundle = folder / "bundles" / network / "1"
    kinds = ["float32", *["int8"] * (networks.NETWORKS[network].cell == "lstm")]
    for size in SIZES:
        yield "padded, all cores", padded(file, sequences, size, True, seconds)
        yield "padded, thread a core", padded(file, sequences, size, False, seconds)
        for kind in kinds:
            rate = on_all_cores(bundle, kind, name, size, seconds)
            yield f"in lanes, {kind}", rate


def main() -> None:
    command = parser("bench.serving.engine_limits", __doc__)
    add = command.add_argument
    add("--networks", nargs="+", choices=networks.NETWORKS, default=["lstm", "gru"])
    add("--workloads", nargs="+", choices=workloads.NAMES, default=["W1", "W2"])
    add("--seconds", type=float, default=1, help="of a run")
    add("--cache", type=Path, default=networks.CACHE)
    options = command.parse_args()
    describe_machine()
    folder = networks.folder(options.cache)
    for network, name in itertools.product(options.networks, options.workloads):
        print(f"\n{network}, {name} ({workloads.TEXTS[name]}): sequences/s by size")
        print(f"{'':22}" + "".join(f"{size:>9}" for size in SIZES) + "     best")
        table: dict[str, list[float]] = {}
        for way, rate in rates(folder, network, name, options.seconds):
            table.setdefault(way, []).append(rate)
        for way, row in table.items():
            texts = "".join(f"{rate:9.1f}" for rate in row)
            print(f"{way:22}{texts}{max(row):9.1f}")


if __name__ == "__main__":
    main()
