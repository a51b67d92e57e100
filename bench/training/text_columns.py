"""Train `tags` with fewer columns of ids, and forward only: what each of them brings.

    python -m bench.training.text_columns

Prints the error on the validation part, of all words and of new ones.
"""

import dataclasses

from bench.environment import parser, progress
from model import config
from model.datasets import builtin, text
from model.evaluation import evaluation
from model.evaluation import text as metrics
from model.training import loop, steps

COLUMNS = {
    "words": ("word",),
    "words, lower case": ("word", "lower"),
    "all": ("word", "lower", *text.HASHED),
}


def main() -> None:
    command = parser("bench.training.text_columns", __doc__)
    command.add_argument("--epochs", type=int, default=5)
    options = command.parse_args()
    settings = config.load(config.presets()["tags"])
    settings = settings.update({"training": {"epochs": options.epochs}})
    data = settings.data
    chosen = text.TextOptions(
        max_words=data.max_words, buckets=data.buckets, embedding=data.embedding
    )
    raw = builtin.load("tags")
    whole = text.build(raw, chosen)
    print("| columns | direction | error, validation | on new words |")
    print("| --- | --- | --- | --- |")
    for both in (True, False):
        run = settings.update({"network": {"bidirectional": both}})
        for name, columns in COLUMNS.items():
            kept = tuple(c for c in whole.columns if c.name in columns)
            vocabulary = whole.model_copy(update={"columns": kept, "examples": ()})
            vocabulary = type(whole).read(vocabulary.model_dump_json().encode())
            dataset = text.encode(raw, vocabulary)
            trained = loop.fit(dataset, run, callback=_Progress(name))
            part = dataset.part("validation")
            answers = evaluation.predict(part, steps.scorer(trained.network))
            wrong = 100 * float((answers.scores.argmax(1) != answers.targets).mean())
            new = metrics.parts(dataset, {"validation": answers})["validation"]
            way = "both" if both else "forward"
            print(
                f"| {name} | {way} | {wrong:.2f} % | {new.error_new:.2f} % |",
                flush=True,
            )


class _Progress(loop.Callback):
    def __init__(self, name: str):
        self._name = name

    def on_epoch_end(self, epoch: loop.Epoch) -> None:
        values = dataclasses.asdict(epoch)
        progress(f"{self._name}: {values['epoch']}: {values['validation_error']:.2f} %")


if __name__ == "__main__":
    main()
