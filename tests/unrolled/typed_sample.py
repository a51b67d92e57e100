"""A program that uses the installed client and `model.load`, with a service and without.

test_wheel.py runs it and checks its types.
"""

import sys

import numpy as np

import model
from service.client import Client, ConnectionLost, RequestError
from service.client.results import Classification, Labelling


def main(url: str) -> None:
    """Print answers of each kind from a service."""
    with Client(url, headers={"X-API-Key": "key"}) as client:
        for served in client.models():
            print(served.name, served.feature_count, served.classes[0])
        print(client.model("vowels").features)

        speech = [np.zeros((20, 12)), np.zeros((7, 12))]
        answer = client.classify(speech, model="vowels", top_k=2)
        for prediction in answer.predictions:
            print(prediction.label, prediction.probability)
            for choice in prediction.top or []:
                print(choice.label, choice.probability)

        word = [[0.0] * 128] * 3
        for steps in client.label([word], model="letters").predictions:
            print(steps.labels)
            if steps.probabilities is not None:
                print(steps.probabilities.shape, steps.probabilities.max())

        with client.stream("letters-live") as stream:
            match stream.send(word):
                case Labelling(labels=labels):
                    print(labels)
                case Classification(label=label):
                    print(label)
            print(stream.label(word).labels, stream.steps, stream.end())

        narrow = [np.zeros((20, 3))]
        try:
            client.classify(narrow, model="vowels")
        except RequestError as error:
            print(error.status, [e["path"] + e["message"] for e in error.errors])
        except ConnectionLost as error:
            print(error.address)


def predict() -> None:
    """Print the answers of a shipped bundle, computed in this process."""
    network = model.load("vowels")
    print(network.name, network.task, network.classes[0], network.features[0])
    answer = network.classify([np.zeros((20, 12)), np.zeros((7, 12))])
    for name, prediction in zip(answer.ids, answer.predictions, strict=True):
        print(name, prediction.label, prediction.probability)
        print(prediction.probabilities.shape, answer.accuracy)
    words = model.load("letters").label([[0.0] * 128] * 3)
    print(words.version, words.predictions[0].labels)
    for column in answer.to_dict():
        print(column)


if __name__ == "__main__":
    main(sys.argv[1])
    predict()
