"""A streaming server as one writes it in an afternoon: a WebSocket for each stream, its
state in a variable, one `session.run` for each message.

`ONNX` names the network's file, and `THREADS` the number of threads of each session.
"""

import os

import numpy as np
import onnxruntime
import orjson
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
session = onnxruntime.InferenceSession(os.environ["ONNX"], options)
width = next(i.shape[1] for i in session.get_inputs() if i.name == "state")
app = FastAPI()


@app.get("/ready")
async def ready():
    return {}


@app.websocket("/stream")
async def stream(socket: WebSocket):
    await socket.accept()
    state, steps = np.zeros((1, width), np.float32), 0
    try:
        while True:
            message = orjson.loads(await socket.receive_text())
            frames = np.array(message["frames"], np.float32)[None]
            lengths = np.array([frames.shape[1]], np.int32)
            inputs = {"frames": frames, "lengths": lengths, "state": state}
            probabilities, state = session.run(None, inputs)
            steps += frames.shape[1]
            answer = {"steps": steps, "probabilities": probabilities[0]}
            text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
            await socket.send_text(text.decode())
    except WebSocketDisconnect:
        pass
