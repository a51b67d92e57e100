"""FastAPI around a Keras network of text, as one writes it: `TextVectorization`, an
embedding, and layers of the size of a bundle's. Its weights are random."""

import json
import os

import keras
import tensorflow as tf
from fastapi import FastAPI
from pydantic import BaseModel

from model.bundle import vocabulary

with open(
    os.path.join(os.environ["BUNDLE"], vocabulary.FILE), encoding="utf-8"
) as file:
    ENTRIES = json.load(file)["entries"]
about = json.loads(os.environ["NETWORK"])
vectorize = keras.layers.TextVectorization(
    vocabulary=ENTRIES, standardize=None, split=about["split"]
)
Cell = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[about["cell"]]


def layer(index: int) -> keras.layers.Layer:
    last = index + 1 == about["layers"]
    recurrent = Cell(about["hidden"], return_sequences=not last or about["by_step"])
    return keras.layers.Bidirectional(recurrent) if about["both"] else recurrent


network = keras.Sequential(
    [
        keras.layers.Embedding(len(ENTRIES) + 2, about["embedding"]),
        *(layer(index) for index in range(about["layers"])),
        keras.layers.Dense(about["classes"], activation="softmax"),
    ]
)
network(tf.zeros((1, 1), tf.int32))
app = FastAPI()


class Body(BaseModel):
    """The texts of a request."""

    texts: list[str]


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def predict(texts: tf.Tensor) -> tf.Tensor:
    return network(vectorize(texts))


@app.post("/predict")
def answer(body: Body) -> list[list[list[float]]] | list[list[float]]:
    """Return the probabilities of the classes, for each word or text."""
    return predict(tf.constant(body.texts)).numpy().tolist()


@app.get("/ready")
def ready() -> None:
    """Return 200 once the network is built."""
