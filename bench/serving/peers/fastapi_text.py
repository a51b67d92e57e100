"""FastAPI around a Keras network of words, as one writes it: `TextVectorization`, an
embedding, and the layers of the bundle `tags`. Its weights are random."""

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
    WORDS = json.load(file)["entries"]
about = json.loads(os.environ["NETWORK"])
vectorize = keras.layers.TextVectorization(
    vocabulary=WORDS, standardize=None, split="whitespace"
)
network = keras.Sequential(
    [
        keras.layers.Embedding(len(WORDS) + 2, about["embedding"]),
        *(
            keras.layers.Bidirectional(
                keras.layers.LSTM(about["hidden"], return_sequences=True)
            )
            for _ in range(about["layers"])
        ),
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


@app.post("/label")
def label(body: Body) -> list[list[list[float]]]:
    """Return the probabilities of each word's classes."""
    return predict(tf.constant(body.texts)).numpy().tolist()


@app.get("/ready")
def ready() -> None:
    """Return 200 once the network is built."""
