"""Digits and letters as pen strokes, generated for tests that draw on a pad.

A form is text. "/" separates strokes; a stroke is points "x,y" in a square of 100 by 100,
y down, joined by a smooth curve, with a corner at each "|". Each hand places the forms in
its own way, and has some forms of its own.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

DIGITS = {
    "0": "50,6 30,16 22,50 30,84 50,94 70,84 78,50 70,16 50,6",
    "1": "50,6 50,94",
    "2": "24,28 32,12 50,6 68,13 73,30 62,54 24,93 | 78,93",
    "3": "25,16 46,6 68,13 70,32 46,46 | 70,56 75,74 62,90 42,94 22,84",
    "4": "62,6 18,64 | 84,64 / 62,6 62,94",
    "5": "34,8 30,46 | 48,38 68,44 76,64 66,86 46,94 22,86 / 34,8 74,8",
    "6": "64,6 40,24 24,56 26,82 46,94 68,88 74,70 62,54 44,54 26,70",
    "7": "22,8 78,8 | 56,48 44,94",
    "8": "70,18 50,6 32,14 32,32 50,46 70,62 74,80 50,94 26,80 32,60 50,46 68,32 70,18",
    "9": "74,22 54,6 32,12 26,34 40,50 60,46 74,22 | 72,60 66,94",
}

LETTERS = {
    "a": "70,44 52,36 32,44 28,62 40,76 58,70 70,40 | 70,62 78,76",
    "b": "30,6 30,76 | 30,56 48,40 68,48 70,64 56,76 30,74",
    "c": "70,44 52,36 34,44 30,58 38,72 54,76 72,70",
    "d": "68,50 50,38 32,48 30,64 42,76 58,72 68,56 / 68,6 68,76",
    "e": "32,56 68,54 | 64,40 48,36 32,46 30,62 42,75 58,76 72,70",
    "f": "72,12 58,6 46,18 46,76 / 28,38 66,38",
    "g": "68,44 50,36 32,44 30,58 44,68 60,62 68,42 | 68,80 58,96 40,98 28,90",
    "h": "30,6 30,76 | 30,54 48,40 64,48 66,76",
    "i": "50,36 50,76 / 50,16 51,18",
    "j": "58,36 58,84 48,97 30,92 / 58,16 59,18",
    "k": "32,6 32,76 / 66,36 34,58 | 70,76",
    "l": "50,6 50,76",
    "m": "24,38 24,76 | 26,48 38,38 48,46 50,76 | 52,48 64,38 74,46 76,76",
    "n": "30,38 30,76 | 32,50 48,38 64,46 66,76",
    "o": "50,36 32,44 28,58 36,72 50,76 66,70 72,56 66,42 50,36",
    "p": "30,38 30,98 | 30,48 48,36 66,42 70,56 60,70 44,74 30,66",
    "q": "68,44 50,36 32,44 30,58 44,70 60,64 68,42 | 68,98 | 78,88",
    "r": "34,38 34,76 | 36,52 48,40 66,42",
    "s": "68,42 50,36 34,44 40,54 60,60 68,68 52,76 30,72",
    "t": "50,10 50,76 / 30,36 70,36",
    "u": "30,38 30,62 42,76 58,70 68,38 | 68,76",
    "v": "28,38 50,76 | 72,38",
    "w": "22,38 36,76 | 50,46 | 64,76 | 78,38",
    "x": "30,38 70,76 / 70,38 30,76",
    "y": "30,38 50,66 / 70,38 36,98",
    "z": "30,38 68,38 | 30,76 | 72,76",
}


@dataclass(frozen=True)
class Drawing:
    """A digit or a letter: each stroke [points, 2], x right and y down, within 0 to 1."""

    hand: str
    label: str
    strokes: list[np.ndarray]


@dataclass(frozen=True)
class Hand:
    """A style of handwriting: its own forms, and their placement on the pad."""

    slant: float = 0.0  # sideways for each unit up: 0.27 leans 15 degrees
    width: float = 1.0  # factor; the height stays
    size: float = 0.8  # of the pad, for the form's square
    centre: tuple[float, float] = (0.5, 0.5)
    wobble: float = 0.0  # standard deviation of a point, in the form's units
    angular: bool = False  # straight from point to point
    forms: dict[str, str] = field(default_factory=dict)


HANDS = {
    "upright": Hand(),
    "slanted": Hand(
        slant=0.27,
        width=0.8,
        wobble=0.8,
        forms={
            "1": "42,22 52,6 | 52,94",
            "2": "24,28 32,12 50,6 68,13 73,30 58,60 34,90 22,88 28,78 48,86 78,92",
            "4": "32,8 20,54 | 82,54 / 66,16 66,94",
        },
    ),
    "european": Hand(
        slant=0.06,
        size=0.7,
        centre=(0.5, 0.45),
        wobble=0.8,
        forms={
            "0": "54,8 34,14 24,36 26,68 42,92 62,88 76,64 74,32 60,10 48,10",
            "1": "34,28 54,6 | 54,94",
            "2": "26,24 38,8 58,8 70,24 66,44 44,72 22,92 | 50,88 80,92",
            "4": "50,6 20,64 | 82,62 / 62,42 60,94",
            "5": "72,10 36,10 | 32,48 | 50,40 70,48 74,70 60,90 40,94 24,86",
            "6": "58,6 38,30 28,58 30,84 48,94 66,84 68,66 52,54 30,68",
            "7": "22,10 78,8 | 58,48 44,94 / 36,50 76,48",
            "8": "50,6 34,14 34,34 50,44 66,34 66,14 50,6 / 50,44 30,56 28,80 50,94 72,80 70,56 50,44",
            "9": "74,22 54,6 32,12 26,34 40,50 60,46 74,22 | 74,62 64,86 46,94 28,86",
        },
    ),
    "hasty": Hand(
        slant=0.1,
        width=0.9,
        size=0.5,
        centre=(0.4, 0.6),
        wobble=2.4,
        forms={
            "0": "54,8 34,14 22,44 30,84 52,94 74,76 76,40 70,16 64,10",
            "5": "74,8 36,10 | 32,46 | 50,40 70,46 76,66 64,88 44,94 24,86",
            "6": "64,6 40,24 24,56 26,82 46,94 68,88 74,70 62,56 46,56 34,66",
            "8": "72,20 52,6 34,14 34,32 50,46 70,62 72,80 50,94 28,80 34,60 50,46 62,32 64,18",
            "9": "68,14 50,6 32,14 26,34 40,48 58,44 72,20 | 72,60 66,94",
        },
    ),
    "broad": Hand(
        width=1.15,
        size=0.95,
        angular=True,
        forms={
            "0": "38,6 20,24 20,76 38,94 64,94 80,76 80,22 62,6 38,6",
            "1": "34,26 50,6 50,94 / 28,94 72,94",
            "2": "22,26 34,8 64,8 76,26 24,92 80,92",
            "3": "22,8 74,8 46,42 72,52 78,76 60,92 38,94 20,84",
            "4": "26,8 22,52 80,52 / 66,10 66,94",
        },
    ),
}


def digits() -> list[Drawing]:
    """Each hand's digits, 0 to 9."""
    return [_draw(hand, label, DIGITS) for hand in HANDS for label in DIGITS]


def letter(label: str, hand: str = "upright") -> Drawing:
    """A lower-case letter in print."""
    return _draw(hand, label, LETTERS)


def _draw(name: str, label: str, plain: dict[str, str]) -> Drawing:
    hand = HANDS[name]
    chance = np.random.default_rng([ord(label), *name.encode()])
    form = hand.forms.get(label, plain[label])
    strokes = [_stroke(text, hand, chance) for text in form.split("/")]
    return Drawing(name, label, strokes)


def _stroke(text: str, hand: Hand, chance: np.random.Generator) -> np.ndarray:
    """A stroke on the pad. Only the points of the form wobble, so that the curve through
    them stays smooth."""
    points = np.array([p.split(",") for p in text.replace("|", " ").split()], float)
    points += chance.normal(0, hand.wobble, points.shape)
    corners = np.cumsum([len(part.split()) for part in text.split("|")]) - 1
    steps = max(3, -(-12 // (len(points) - 1)))
    pieces = [points[:1]]
    for start, end in pairwise([0, *corners]):
        pieces.append(_curve(points[start : end + 1], steps, hand.angular)[1:])
    return _place(np.concatenate(pieces), hand)


def _curve(points: np.ndarray, steps: int, angular: bool) -> np.ndarray:
    """A curve through all points: a Catmull-Rom spline, or straight lines."""
    first, last = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    around = np.stack([first, *points, last])[:, None]
    a, b, c, d = around[:-3], around[1:-2], around[2:-1], around[3:]
    t = np.arange(steps)[:, None] / steps
    if angular:
        parts = b + (c - b) * t
    else:
        bend = (2 * a - 5 * b + 4 * c - d) * t + (3 * b - 3 * c + d - a) * t**2
        parts = b + (c - a + bend) * t / 2
    return np.concatenate([parts.reshape(-1, 2), points[-1:]])


def _place(points: np.ndarray, hand: Hand) -> np.ndarray:
    """Map points from the form's square to the pad."""
    x, y = (points / 100 - 0.5).T
    placed = np.stack([x * hand.width - y * hand.slant, y], axis=1)
    return np.array(hand.centre) + hand.size * placed
