"""A program that uses the installed client. test_wheel.py runs it and checks its types."""

import sys

import numpy as np

from service.client import Client, ConnectionLost, RequestError
from service.client.results import Classification, Labelling


def main(url: str) -> None:
    """Print answers of each kind from a service."""
    with Client(url, headers={"X-API-Key": "key"}) as client:
        for model in client.models():
            print(model.name, model.feature_count, model.classes[0])
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


if __name__ == "__main__":
    main(sys.argv[1])
