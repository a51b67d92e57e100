"""Write the built-in data set `intents` from the templates of Home Assistant.

    pip install hassil home-assistant-intents numpy
    python -m bench.training.intents_data

Each template is expanded to some random sentences. No template is in two parts, and a
sentence of several templates is in the first one's part alone.

People don't speak in templates. So most commands get other words (`_spoken`), and the
class `Other` has sentences that are no command (`_others`). The parts have no openings,
closings or documents in common: the temperature is then fitted on words that training has
not seen.
"""

import argparse
import gzip
import importlib.resources
import json
import random
import re
import string
from collections import Counter
from pathlib import Path

import numpy as np

from model.datasets.dataset import PARTS

OUTPUT = Path("model/datasets/data/intents.jsonl.gz")
BROWN = Path("model/datasets/data/tags.npz")
PACKAGE = "home_assistant_intents"
MIN_TEMPLATES, SENTENCES, TRIES = 5, 24, 200
MIN_SENTENCES = 50  # of an intent
# Sentences of an intent for training: those of rarer ones are spoken in several ways.
ENOUGH = 400
SHARES = (0.15, 0.15)  # of an intent's templates, for validation and for testing
OTHER = "Other"
OTHERS = {"train": 4000, "validation": 650, "test": 650}  # sentences of Brown
NUMBERS = 0.3  # share of the commands whose numbers are words
NOISE = 0.05  # as many strings of random letters, by sentences of Brown
LONGEST = 12  # words of a sentence of Brown
NAMES = 0.3  # share of the commands with a name that training has not seen
SPOKEN = 0.7  # share of the commands that get words around or within them
ONES = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen"
    "|fifteen|sixteen|seventeen|eighteen|nineteen"
)
TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
# Words around commands, by parts, and words of sentences that one says to somebody.
PHRASES = json.loads(Path(__file__).with_name("intents_phrases.json").read_text())
# Values of lists that a home names itself, or that take any words.
VALUES = {
    "name": "bedside lamp|ceiling fan|coffee machine|front door|garage door|hall light"
    "|heater|humidifier|reading lamp|living room blinds|robot|radio|desk lamp|oven"
    "|porch light|speaker|television|thermostat|washing machine|window|alarm|curtains"
    "|kitchen light|dishwasher|back door|fairy lights|air conditioner|printer|sprinkler",
    "area": "kitchen|living room|bedroom|bathroom|office|garage|hallway|garden|attic"
    "|basement|nursery|dining room|guest room|study|laundry room|terrace",
    "floor": "first floor|ground floor|upstairs|downstairs|second floor|top floor",
    "message": "dinner is ready|time for bed|the guests are here|we leave in ten minutes"
    "|please come down|the taxi is waiting|lunch is on the table",
    "search_query": "jazz|the beatles|rock music|classical piano|a podcast about history"
    "|my workout playlist|relaxing sounds|christmas songs|miles davis",
    "timer_command": "open the garage door|turn off the lights|close the curtains"
    "|start the vacuum|lock the front door",
    "timer_name": "pizza|laundry|tea|bread|egg|pasta|workout|nap|homework",
    "shopping_list_item": "milk|eggs|bread|apples|coffee|cheese|olive oil|tomatoes|rice",
    "todo_list_item": "call mom|water the plants|pay the rent|clean the windows"
    "|book a table|take out the trash|write a letter",
    "zone": "work|school|home|the gym|the office",
}


DELAYED = re.compile(VALUES["timer_command"])
NAMED = re.compile(
    r"\b(?:"
    + "|".join(
        VALUES[name]
        for name in ("name", "search_query", "message", "timer_name", "todo_list_item")
    )
    + r")\b"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    lines = sentences(options.seed)
    with (
        options.output.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):
        for line in lines:
            packed.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    counts = {name: sum(line["split"] == name for line in lines) for name in PARTS}
    print(f"{options.output}: {counts}, {len({x['label'] for x in lines})} intents")


def sentences(seed: int) -> list[dict[str, str]]:
    """Return sentences with their intents and parts."""
    from hassil.intents import Intents

    folder = importlib.resources.files(PACKAGE)
    data = json.loads((folder / "data" / "en.json").read_text(encoding="utf-8"))
    intents = Intents.from_dict(data)
    templates = {
        name.removeprefix("Hass"): [t for part in intent.data for t in part.sentences]
        for name, intent in sorted(intents.intents.items())
    }
    commands = _commands(templates, intents, random.Random(seed))
    draw = random.Random(seed + 1)
    brown = _brown()
    left_out = sorted(templates.keys() - {line["label"] for line in commands})
    others = _others({name: templates[name] for name in left_out}, intents, brown, draw)
    at_once: dict[str, list[str]] = {part: [] for part in PARTS}
    for line in commands:
        if line["label"] in ("TurnOn", "TurnOff"):
            at_once[line["split"]].append(line["text"])
    counts = Counter(line["label"] for line in commands if line["split"] == "train")
    copies = {label: -(-ENOUGH // count) for label, count in counts.items()}
    lines: dict[str, dict[str, str]] = {}
    for line in others:
        lines[line["text"]] = line
    for line in commands:
        share, text = SPOKEN, line["text"]
        if line["label"] == "StartTimer":
            # Any command may be for later: a few only would no longer be read as for now.
            text = DELAYED.sub(draw.choice(at_once[line["split"]]), text)
        for _ in range(copies[line["label"]] if line["split"] == "train" else 1):
            spoken = _spoken(text, line["split"], share, brown, draw)
            lines[spoken] = line | {"text": spoken}
            share = 1.0
    return list(lines.values())


def _commands(
    templates: dict[str, list], intents, draw: random.Random
) -> list[dict[str, str]]:
    lines: dict[str, dict[str, str]] = {}
    for label, own in templates.items():
        if len(own) < MIN_TEMPLATES:
            continue
        order = draw.sample(range(len(own)), len(own))
        sizes = [max(1, round(share * len(own))) for share in SHARES]
        for place, index in enumerate(order):
            part = 1 if place < sizes[0] else 2 if place < sum(sizes) else 0
            for text in _expansions(own[index], intents, draw, lines):
                lines[text] = {"text": text, "label": label, "split": PARTS[part]}
    counts = Counter(line["label"] for line in lines.values())
    return [line for line in lines.values() if counts[line["label"]] >= MIN_SENTENCES]


def _expansions(template, intents, draw: random.Random, known=()) -> list[str]:
    """Return different random sentences of a template, sorted."""
    results: set[str] = set()
    for _ in range(TRIES):
        if len(results) == SENTENCES:
            break
        text = " ".join(_expand(template.expression, intents, draw).split())
        if text and text not in known and text not in results:
            results.add(text)
    return sorted(results)


def _others(
    left_out: dict[str, list], intents, brown: dict[str, list], draw: random.Random
) -> list[dict[str, str]]:
    """Return sentences that are none of the commands: those of intents that are left out,
    each in one part, those of the Brown corpus, and strings of random letters."""
    texts: dict[str, list[str]] = {
        part: _others_of_brown(brown[part], count, draw)
        for part, count in OTHERS.items()
    }
    names = draw.sample(sorted(left_out), len(left_out))
    held_out = round(SHARES[0] * len(names))
    for place, name in enumerate(names):
        part = PARTS[1 if place < held_out else 2 if place < 2 * held_out else 0]
        for template in left_out[name]:
            texts[part] += _expansions(template, intents, draw)
    for part, count in OTHERS.items():
        for _ in range(round(NOISE * count)):
            letters = draw.choices(
                string.ascii_lowercase + "   ", k=draw.randint(3, 25)
            )
            texts[part].append(" ".join("".join(letters).split()) or "x")
    return [
        {"text": text, "label": OTHER, "split": part}
        for part in PARTS
        for text in texts[part]
    ]


def _others_of_brown(texts: list[str], count: int, draw: random.Random) -> list[str]:
    """Return sentences of which half at least are like those that one says to somebody."""
    words = set(PHRASES["personal"])
    personal = [text for text in texts if words & set(text.split())]
    half = draw.sample(personal, count // 2)
    return half + draw.sample(sorted(set(texts) - set(half)), count - count // 2)


def _brown() -> dict[str, list[str]]:
    """Return short sentences of the Brown corpus, in lower case without marks, by parts of
    whole documents."""
    with np.load(BROWN, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    strings = arrays["strings"].tobytes().decode().lower().split("\n")
    words = arrays["y"] != arrays["classes"].tolist().index("PUNCT")
    ends = np.cumsum(arrays["lengths"].astype(int))
    texts: dict[str, list[str]] = {part: [] for part in PARTS}
    for end, length, part in zip(ends, arrays["lengths"], arrays["split"], strict=True):
        places = np.arange(end - length, end)
        places = places[words[places]]
        if 2 <= len(places) <= LONGEST:
            texts[PARTS[part]].append(" ".join(strings[x] for x in arrays["x"][places]))
    return {part: sorted(set(sentences)) for part, sentences in texts.items()}


def _number(digits: re.Match[str]) -> str:
    """Return a number under 100 as words, and a space in place of a hyphen after it."""
    tens, ones = divmod(int(digits[1]), 10)
    names = ONES.split("|")
    words = names[int(digits[1])] if tens < 2 else TENS.split("|")[tens - 2]
    if tens >= 2 and ones:
        words += f" {names[ones]}"
    return words + " " * digits[0].endswith("-")


def _spoken(
    text: str, part: str, share: float, brown: dict[str, list], draw: random.Random
) -> str:
    """Return a command with numbers as words, an opening, a closing, or words of the Brown
    corpus; all but the numbers for a share of the commands."""
    if draw.random() < NUMBERS:
        text = re.sub(r"(?<![\d.])(\d\d?)(?![\d.])-?", _number, text)
    if draw.random() < NAMES:
        text = NAMED.sub(lambda _: _words(brown[part], 2, draw), text, count=1)
    if draw.random() >= share:
        return text
    if draw.random() < 0.4:
        # A word may be replaced: without its verb a command could be one of several.
        words = text.split()
        place = 0 if draw.random() < 0.4 else draw.randrange(len(words) + 1)
        end = place + (draw.random() < 0.5)
        words[place:end] = [_words(brown[part], 3, draw)]
        text = " ".join(words)
    if draw.random() < 0.6:
        text = f"{draw.choice(PHRASES['openings'][part])} {text}"
    if draw.random() < 0.3:
        text = f"{text} {draw.choice(PHRASES['closings'][part])}"
    return text


def _words(texts: list[str], most: int, draw: random.Random) -> str:
    """Return neighbouring words of a random text."""
    words = draw.choice(texts).split()
    first = draw.randrange(len(words))
    return " ".join(words[first : first + draw.randint(1, most)])


def _expand(expression: object, intents, draw: random.Random) -> str:
    """Return a random sentence of a template."""
    from hassil import expression as parts
    from hassil.intents import RangeSlotList, TextSlotList

    match expression:
        case parts.TextChunk():
            return expression.original_text
        case parts.Alternative():
            return _expand(draw.choice(expression.items), intents, draw)
        case parts.Permutation():
            items = draw.sample(expression.items, len(expression.items))
            return " ".join(_expand(item, intents, draw) for item in items)
        case parts.Sequence():
            return "".join(_expand(item, intents, draw) for item in expression.items)
        case parts.ListReference():
            if expression.list_name in VALUES:
                return draw.choice(VALUES[expression.list_name].split("|"))
            values = intents.slot_lists[expression.list_name]
            if isinstance(values, TextSlotList):
                return _expand(draw.choice(values.values).text_in, intents, draw)
            assert isinstance(values, RangeSlotList), expression.list_name
            return str(draw.choice(list(values.get_numbers())))
        case parts.RuleReference():
            rule = intents.expansion_rules[expression.rule_name]
            return _expand(rule.expression, intents, draw)
    raise TypeError(f"{expression!r} has no sentences")


if __name__ == "__main__":
    main()
