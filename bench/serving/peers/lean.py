"""FastAPI with all that is quick, and no batching.

    ONNX=FILE uvicorn lean:app --workers 2 --loop uvloop --http httptools

A process and an engine thread for each core; orjson reads and writes, nothing is
validated, and the event loop itself computes: a hop to a thread costs more than
what could overlap.
"""

import os

import numpy as np
import onnxruntime
import orjson
from fastapi import FastAPI, Request, Response

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["ONNX"], options)
states = {given.name: given.shape for given in session.get_inputs()}
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
