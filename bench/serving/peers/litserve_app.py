"""LitServe with batching.

    ONNX=FILE python litserve_app.py --port 8000 --workers 2

Batches are padded to the longest sequence, and the network gets the lengths. A worker
and a web server for each core, with one engine thread each, had the highest throughput
of what was tried: one worker with all cores, one web server, `fast_queue`, and waiting
0, 1, 2, 5 or 10 ms for a batch to fill.
"""

import argparse
import os

import litserve
import numpy as np
import onnxruntime


class Recurrent(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["ONNX"], options)
        shapes = {tensor.name: tensor.shape for tensor in self.session.get_inputs()}
        self.size = shapes["state"][1]

    def decode_request(self, request):
        return np.array(request["sequences"][0], np.float32)  # [T, F]

    def batch(self, inputs):
        lengths = np.array([len(frames) for frames in inputs], np.int32)
        padded = np.zeros((len(inputs), lengths.max(), inputs[0].shape[1]), np.float32)
        for row, frames in zip(padded, inputs, strict=True):
            row[: len(frames)] = frames
        return padded, lengths

    def predict(self, batch):
        frames, lengths = batch
        state = np.zeros((len(frames), self.size), np.float32)
        inputs = {"frames": frames, "lengths": lengths, "state": state}
        (probabilities,) = self.session.run(["probabilities"], inputs)
        return probabilities, lengths

    def unbatch(self, output):
        probabilities, lengths = output
        if probabilities.ndim == 2:
            return list(probabilities)
        return [rows[:n] for rows, n in zip(probabilities, lengths, strict=True)]

    def encode_response(self, output):
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    api = Recurrent(max_batch_size=32, batch_timeout=0.001)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        devices=1,
        workers_per_device=chosen.workers,
        timeout=False,  # else it refuses after 30 s
    )
    server.run(
        host="127.0.0.1",
        port=chosen.port,
        num_api_servers=chosen.workers,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
        loop="uvloop",
        http="httptools",
    )
