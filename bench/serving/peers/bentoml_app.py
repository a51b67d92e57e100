"""BentoML with adaptive batching.

    ONNX=FILE WORKERS=2 bentoml serve bentoml_app:Recurrent

A request holds one sequence, so a batch is a list of them, padded to the longest, and
the network gets the lengths. Of the variants tried, a process and an engine thread for
each core had twice the throughput of one process with all cores, and lists more than
`list[np.ndarray]`.
"""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(
    workers=int(os.environ["WORKERS"]),
    traffic={"timeout": 600},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Recurrent:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["ONNX"], options)
        shapes = {tensor.name: tensor.shape for tensor in self.session.get_inputs()}
        self.size = shapes["state"][1]

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60_000)
    def predict(self, sequences: list[list[list[float]]]) -> list:
        arrays = [np.array(sequence, np.float32) for sequence in sequences]
        lengths = np.array([len(array) for array in arrays], np.int32)
        frames = np.zeros((len(arrays), lengths.max(), arrays[0].shape[1]), np.float32)
        for row, array in zip(frames, arrays, strict=True):
            row[: len(array)] = array
        state = np.zeros((len(frames), self.size), np.float32)
        inputs = {"frames": frames, "lengths": lengths, "state": state}
        (probabilities,) = self.session.run(["probabilities"], inputs)
        if probabilities.ndim == 2:
            return probabilities.tolist()
        rows = zip(probabilities, lengths, strict=True)
        return [answer[:length].tolist() for answer, length in rows]
