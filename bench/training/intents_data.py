"""Write the built-in data set `intents` from the templates of Home Assistant.

    pip install hassil home-assistant-intents
    python -m bench.training.intents_data

Each template is expanded to some random sentences. No template is in two parts, and a
sentence of several templates is in the first one's part alone.
"""

import argparse
import gzip
import importlib.resources
import json
import random
from collections import Counter
from pathlib import Path

from model.datasets.dataset import PARTS

OUTPUT = Path("model/datasets/data/intents.jsonl.gz")
PACKAGE = "home_assistant_intents"
MIN_TEMPLATES, SENTENCES, TRIES = 5, 24, 200
MIN_SENTENCES = 50  # of an intent
SHARES = (0.15, 0.15)  # of an intent's templates, for validation and for testing
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    lines = sentences(random.Random(options.seed))
    with (
        options.output.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):
        for line in lines:
            packed.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    counts = {name: sum(line["split"] == name for line in lines) for name in PARTS}
    print(f"{options.output}: {counts}, {len({x['label'] for x in lines})} intents")


def sentences(draw: random.Random) -> list[dict[str, str]]:
    """Return sentences with their intents and parts."""
    from hassil.intents import Intents

    folder = importlib.resources.files(PACKAGE)
    data = json.loads((folder / "data" / "en.json").read_text(encoding="utf-8"))
    intents = Intents.from_dict(data)
    lines: dict[str, dict[str, str]] = {}
    for name, intent in sorted(intents.intents.items()):
        templates = [t for part in intent.data for t in part.sentences]
        if len(templates) < MIN_TEMPLATES:
            continue
        order = draw.sample(range(len(templates)), len(templates))
        sizes = [max(1, round(share * len(templates))) for share in SHARES]
        for place, index in enumerate(order):
            part = 1 if place < sizes[0] else 2 if place < sum(sizes) else 0
            results: set[str] = set()
            for _ in range(TRIES):
                if len(results) == SENTENCES:
                    break
                text = " ".join(
                    _expand(templates[index].expression, intents, draw).split()
                )
                if text and text not in lines and text not in results:
                    results.add(text)
            for text in sorted(results):
                label = name.removeprefix("Hass")
                lines[text] = {"text": text, "label": label, "split": PARTS[part]}
    counts = Counter(line["label"] for line in lines.values())
    return [line for line in lines.values() if counts[line["label"]] >= MIN_SENTENCES]


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
