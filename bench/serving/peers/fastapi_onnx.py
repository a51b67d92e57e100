"""FastAPI with everything that is fast, and no batching.

    ONNX=FILE uvicorn fastapi_onnx:app --workers 2 --loop uvloop --http httptools

A process and an engine thread for each core; orjson parses and serializes, nothing is
validated, and the event loop itself runs the network, since a thread costs more than it
gains.
"""

import os

import numpy as np
import onnxruntime
import orjson
from fastapi import FastAPI, Request, Response

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["ONNX"], options)
states = {tensor.name: tensor.shape for tensor in session.get_inputs()}
begin = np.zeros((1, states["state"][1]), np.float32)
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    body = orjson.loads(await request.body())
    frames = np.array(body["sequences"], np.float32)  # [1, T, F]
    lengths = np.array([frames.shape[1]], np.int32)
    inputs = {"frames": frames, "lengths": lengths, "state": begin}
    (probabilities,) = session.run(["probabilities"], inputs)
    answer = orjson.dumps(
        {"probabilities": probabilities[0]}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    return Response(answer, media_type="application/json")


@app.get("/ready")
async def ready() -> dict:
    return {}
