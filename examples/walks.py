"""Write walks_TRAIN.ts and walks_TEST.ts: synthetic walks, to try training on a file.

    python examples/walks.py

A walk has 8 to 40 strides, (east, north) in metres, with noise. Its class is the path:
straight, in a circle, or aimless.
"""

from pathlib import Path

import numpy as np

HEAD = """# Synthetic, by examples/walks.py; no rights reserved.
@problemName walks
@timeStamps false
@missing false
@univariate false
@dimensions 2
@equalLength false
@classLabel true straight circle aimless
@data
"""


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
    for part, count in (("TRAIN", 60), ("TEST", 40)):
        lines = []
        for kind in ("straight", "circle", "aimless"):
            for _ in range(count):
                columns = walk(kind, random).round(2).T
                text = ":".join(",".join(map(str, column)) for column in columns)
                lines.append(f"{text}:{kind}\n")
        path = Path(__file__).with_name(f"walks_{part}.ts")
        path.write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()
