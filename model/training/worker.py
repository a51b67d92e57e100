"""A process that trains folds: `python -m model.training.worker`.

It reads pickled objects from standard input, a data set and then folds, and writes an
answer to each to standard output: see `workers`. It ends when its input ends.
"""

import logging
import os
import pickle
import sys
from typing import BinaryIO

from model.bundle import quiet


def main() -> None:
    """Train the folds that come in, until the input ends."""
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not come between
    threads = int(sys.argv[1])
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # each fold has a graph
    with quiet.imports():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    try:
        dataset = pickle.load(sys.stdin.buffer)
        while True:
            _train(dataset, pickle.load(sys.stdin.buffer), events)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the training that wanted the answers has ended


def _train(dataset, fold, events: BinaryIO) -> None:
    from model.training.fold import train_fold

    def send(kind: str, *values: object) -> None:
        pickle.dump((kind, *values), events)
        events.flush()

    try:
        result = train_fold(dataset, fold, lambda *values: send("progress", *values))
    except BrokenPipeError:
        raise
    except Exception as error:
        send("error", error)
    else:
        send("result", result)


if __name__ == "__main__":
    main()
