"""Write walks.csv and walks_test.csv: synthetic walks, to try training on a file.

    python examples/walks.py

A walk has 8 to 40 strides, (east, north) in metres, with noise. Its class is the path:
straight, in a circle, or aimless. The files are synthetic, and no rights are reserved.
"""

import csv
from pathlib import Path

import numpy as np

HEADER = ("sequence", "step", "east", "north", "label")


def walk(kind: str, random: np.random.Generator) -> np.ndarray:
    """Generate the strides of a walk, [steps, 2]."""
    steps = random.integers(8, 41)
    turns = {
        "straight": np.zeros(steps),
        "circle": np.full(steps, random.choice([-1, 1]) * random.uniform(0.2, 0.5)),
        "aimless": random.normal(0, 1.2, steps),
    }[kind]
    heading = random.uniform(0, 2 * np.pi) + np.cumsum(turns)
    stride = np.stack([np.cos(heading), np.sin(heading)], 1)
    return stride + random.normal(0, 0.2, (steps, 2))


def main() -> None:
    random = np.random.default_rng(0)
    for name, count in (("walks.csv", 60), ("walks_test.csv", 40)):
        kinds = [
            kind for kind in ("straight", "circle", "aimless") for _ in range(count)
        ]
        with Path(__file__).with_name(name).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for number, kind in enumerate(kinds, 1):
                for step, stride in enumerate(walk(kind, random).round(2).tolist()):
                    writer.writerow([f"walk-{number}", step, *stride, kind])


if __name__ == "__main__":
    main()
