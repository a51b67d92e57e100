"""FastAPI and TensorFlow as in their tutorials.

    KERAS=FOLDER uvicorn fastapi_tensorflow:app --loop uvloop --http httptools

One process: a pydantic model of the body, an endpoint in the thread pool, and the
network as Keras exports it, called for each request alone.
"""

import os

import tensorflow as tf
from fastapi import FastAPI
from pydantic import BaseModel

loaded = tf.saved_model.load(os.environ["KERAS"])
app = FastAPI()


class Body(BaseModel):
    sequences: list[list[list[float]]]


@app.post("/predict")
def predict(body: Body) -> dict[str, list]:
    frames = tf.constant(body.sequences, tf.float32)
    return {"probabilities": loaded.serve(frames)[0].numpy().tolist()}


@app.get("/ready")
def ready() -> dict:
    return {}
