"""Test sequences of the built-in sets, as files for the page."""

from model.datasets import builtin, dataset


def sequences_of(name, count):
    """Of the first test sequences of a built-in set: their frames and labels."""
    data = builtin.load(name)
    ends = data.lengths.cumsum()
    for index in [i for i, part in enumerate(data.split) if part == dataset.TEST][
        :count
    ]:
        span = slice(ends[index] - data.lengths[index], ends[index])
        codes = data.targets[span] if data.task == "label" else [data.targets[index]]
        yield data.frames[span].tolist(), [data.classes[code] for code in codes]


def vowels_csv(count, reverse=False):
    """Sequences of `vowels` as CSV; with the columns in another order."""
    names = [f"cepstrum {n}" for n in range(1, 13)]
    header = ["sequence", "label", "note", *names]
    rows = [
        [f"s{at}", label, "x", *frame]
        for at, (frames, (label,)) in enumerate(sequences_of("vowels", count))
        for frame in frames
    ]
    lines = [header, *rows]
    return "\n".join(
        ",".join(map(str, line[:: -1 if reverse else 1])) for line in lines
    )
