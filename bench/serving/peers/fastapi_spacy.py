"""FastAPI around a tagger of spaCy: its default network (HashEmbedCNN, 96 wide, 4 layers)
for the classes of the bundle `tags`. Its weights are random."""

import json
import os

import spacy
from fastapi import FastAPI
from pydantic import BaseModel

nlp = spacy.blank("en")
tagger = nlp.add_pipe("tagger")
for name in json.loads(os.environ["CLASSES"]):
    tagger.add_label(name)
nlp.initialize()
app = FastAPI()


class Body(BaseModel):
    """The texts of a request."""

    texts: list[str]


@app.post("/label")
def label(body: Body) -> list[list[str]]:
    """Return the class of each word."""
    return [[token.tag_ for token in doc] for doc in nlp.pipe(body.texts)]


@app.get("/ready")
def ready() -> None:
    """Return 200 once the network is built."""
