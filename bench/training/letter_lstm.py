"""Train `tags` with an LSTM over the letters of each word, beside its columns of ids.

    python -m bench.training.letter_lstm [--columns words all] [--seed 0]

An experiment, which the product does not have. Both directions of the LSTM read a word's
letters; their last outputs stand beside the embeddings of the columns, and the network behind
them is that of the preset. Within a batch each distinct word is read once. The rows to compare
with are those of `python -m bench.training.text_columns --epochs 4 --directions both`.

Prints the error on the validation part, of all words and of new ones; the seconds of an epoch;
and multiply-accumulates a word: those of the letters, padded to 20 and for the mean length of
the words in a text, and those of the recurrent layers behind. An LSTM of H units that reads W
numbers has 4 H (W + H) a step, in each direction.
"""

from collections.abc import Sequence
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from bench.environment import parser, progress
from bench.training import text_columns
from bench.training.text_columns import COLUMNS, Progress
from model.bundle.vocabulary import Column
from model.config import Config
from model.datasets.dataset import Dataset
from model.network.network import Network
from model.training import checkpoints, loop, pipeline, steps

LONGEST = 20  # letters; of a longer word the last ones are read


class LetterNetwork(Network):
    """A network whose last column numbers strings, which it reads letter by letter."""

    def __init__(self, settings: Config, dataset: Dataset, embedding: int, hidden: int):
        letters = Column(name="letters", size=0, width=2 * hidden)
        super().__init__(
            settings.network,
            task=dataset.task,
            features=len(dataset.features),
            classes=len(dataset.classes),
            columns=(*dataset.columns, letters),
        )
        count, codes, sizes = spell(dataset)
        self.codes, self.sizes = tf.constant(codes), tf.constant(sizes)
        self.alphabet = self.add_weight(
            shape=(count, embedding),
            initializer=keras.initializers.RandomUniform(-0.5, 0.5),
            name="letters",
        )
        self.readers = [
            keras.layers.LSTM(hidden, return_sequences=True, name=f"letters_{way}")
            for way in ("forward", "backward")
        ]
        for layer in self.readers:
            layer.build((None, None, embedding))

    def _embed(self, ids):
        places = tf.cast(ids, tf.int32)
        parts = [
            tf.gather(tf.convert_to_tensor(table.value), places[:, :, index])
            for index, table in enumerate(self.embeddings)
        ]
        words, index = tf.unique(tf.reshape(places[:, :, -1], [-1]))
        read = tf.gather(self._read_letters(words), index)
        shape = [*tf.unstack(tf.shape(ids)[:2]), read.shape[1]]
        return tf.concat([*parts, tf.reshape(read, shape)], 2)

    def _read_letters(self, words):
        """Return the last output of both directions for each word [U], as [U, 2 H]."""
        sizes = tf.gather(self.sizes, words)
        codes = tf.gather(self.codes, words)[:, : tf.reduce_max(sizes)]
        x = tf.gather(tf.convert_to_tensor(self.alphabet.value), codes)
        ways = (x, tf.reverse_sequence(x, sizes, seq_axis=1))
        return tf.concat(
            [
                tf.gather(layer(way), sizes - 1, axis=1, batch_dims=1)
                for layer, way in zip(self.readers, ways, strict=True)
            ],
            1,
        )


def spell(dataset: Dataset) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the number of codes of letters, the codes of all strings [N, 20], and their
    lengths [N]. A letter that the part for training lacks is 0."""
    strings = [string[-LONGEST:] for string in dataset.strings or ()]
    seen = {c for word in np.unique(dataset.part("train").words) for c in strings[word]}
    codes = {letter: code for code, letter in enumerate(sorted(seen), 1)}
    table = np.zeros((len(strings), LONGEST), np.int32)
    for row, string in zip(table, strings, strict=True):
        row[: len(string)] = [codes.get(letter, 0) for letter in string]
    return 1 + len(codes), table, np.array([len(s) for s in strings], np.int32)


def with_strings(dataset: Dataset) -> Dataset:
    """Return the data with the number of each step's string behind its ids."""
    frames = np.column_stack([dataset.frames, dataset.words]).astype(np.float32)
    return replace(dataset, frames=frames, features=(*dataset.features, "string"))


def fit(dataset: Dataset, settings: Config, network: Network, clock: Progress) -> None:
    """Train as `model.training.loop` does, and choose the best epoch by its error."""
    options = settings.training
    train = pipeline.Batches(dataset.part("train"), options.batch)
    updates, epochs = options.length(len(train.dataset))
    trainer = steps.Trainer(
        network, settings, updates=updates, devices=steps.strategy()
    )
    score = steps.scorer(network)
    best, lowest = checkpoints.values(network.variables), np.inf
    for epoch in range(1, epochs + 1):
        clock.on_epoch_begin(epoch, len(train))
        cost, wrong, count = 0.0, 0.0, 0.0
        for index, (_, *batch) in enumerate(train.epoch((options.seed, epoch))):
            seed = (options.seed, epoch, index)
            results = trainer.train_step(*batch, seed=seed).numpy()
            cost, wrong, count = np.add((cost, wrong, count), results).tolist()
            clock.on_batch_end(cost / (index + 1), 100 * wrong / count)
        error, _ = text_columns.errors(dataset, score)
        if error < lowest:
            best, lowest = checkpoints.values(network.variables), error
        mean, rate = cost / len(train), float(trainer.optimizer.learning_rate)
        clock.on_epoch_end(
            loop.Epoch(epoch, mean, 100 * wrong / count, None, error, rate, best=True)
        )
    checkpoints.assign(network.variables, best)


def operations(width: int, hidden: Sequence[int]) -> int:
    """Return the multiply-accumulates of bidirectional LSTM layers for a step."""
    total = 0
    for units in hidden:
        total += 2 * 4 * units * (width + units)
        width = 2 * units
    return total


def main() -> None:
    """Train the network with each choice of columns beside the letters."""
    command = parser("bench.training.letter_lstm", __doc__)
    command.add_argument("--epochs", type=int, default=4)
    command.add_argument(
        "--columns", nargs="+", choices=COLUMNS, default=["words", "all"]
    )
    command.add_argument("--embedding", type=int, default=24, help="of a letter")
    command.add_argument("--hidden", type=int, default=48, help="units a direction")
    command.add_argument("--seed", type=int, default=0)
    options = command.parse_args()
    settings, raw, whole = text_columns.load(options.epochs, options.seed)
    print("| letters and | error, validation | on new words | seconds an epoch |")
    print("| --- | --- | --- | --- |", flush=True)
    for name in options.columns:
        dataset = with_strings(text_columns.encode(raw, whole, COLUMNS[name]))
        keras.utils.set_random_seed(settings.training.seed)
        sizes = (options.embedding, options.hidden)
        network, clock = LetterNetwork(settings, dataset, *sizes), Progress(name)
        fit(dataset, settings, network, clock)
        error, new = text_columns.errors(dataset, steps.scorer(network))
        print(
            f"| {name} | {error:.2f} % | {new:.2f} % | {clock.median:.0f} |", flush=True
        )
        mean = float(network.sizes.numpy()[dataset.part("train").words].mean())
        width = sum(column.width for column in network.columns)
        behind = operations(width, [settings.network.hidden] * settings.network.layers)
        letter = operations(options.embedding, [options.hidden])
        progress(
            f"{name}: letters {LONGEST * letter:,} padded, {mean * letter:,.0f} for"
            f" {mean:.2f} letters; layers behind {behind:,}"
        )


if __name__ == "__main__":
    main()
