"""The code blocks of Markdown pages: found, run, and compared with what the page shows.

A comment before a block says how to treat it:

    <!-- test: slow -->                     only `make test-all` runs it, once if pages share it
    <!-- test: skip, needs Docker -->       nothing runs it, for the reason given

The language says what a block is:

    sh        commands that must succeed
    console   `$ command` lines, each followed by its output
    python    a script that must succeed
    json      the response to the block before it
    output    the output of the block before it
    jsonl, toml, yaml    must parse
    text      not code: a drawing, a file layout
    diff      a change of the file that `title="..."` names; `@@` is between its places

A Python block with a title is a new file.

Responses are compared in shape: the same keys, the same strings, numbers in the same
places. `…` stands for any text, and as a list's last item for more items. Output is
compared word by word, with any number for a number.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```\s*?$",
    re.MULTILINE | re.DOTALL,
)
DIRECTIVE = re.compile(
    r"<!-- test: (?P<kind>slow|skip)(?:, (?P<reason>[^>]+?))? -->\s*\Z"
)
TITLE = re.compile(r'title="([^"]+)"')
NUMBER = re.compile(
    r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)", re.IGNORECASE
)
LANGUAGES = {
    "sh",
    "console",
    "python",
    "json",
    "jsonl",
    "output",
    "toml",
    "yaml",
    "text",
}
ANY = "…"
SECONDS = 300

# The console script in a copy of the project, which is not the one installed.
UNROLLED = """
unrolled() {
    case "$*" in
        *--engine*) python -m unrolled "$@" ;;
        health*|stream*|predict*|classify*|label*) python -m unrolled "$@" --url "$SERVICE_URL" ;;
        *) python -m unrolled "$@" ;;
    esac
}
"""


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    path: Path
    line: int
    language: str
    text: str
    title: str = ""  # of a file that the block shows
    treatment: str = ""  # "", "slow" or "skip"
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path.name}, line {self.line} ({self.language})"


def blocks_of(path: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    page = path.read_text(encoding="utf-8")
    blocks = []
    for match in FENCE.finditer(page):
        directive = DIRECTIVE.search(page, 0, match.start())
        language, _, rest = match["info"].strip().partition(" ")
        title = TITLE.search(rest)
        indent = len(match["indent"])
        lines = (line[indent:] for line in match["text"].splitlines(keepends=True))
        blocks.append(
            Block(
                path=path,
                line=page.count("\n", 0, match.start()) + 1,
                language=language,
                text="".join(lines),
                title=title[1] if title else "",
                treatment=directive["kind"] if directive else "",
                reason=(directive["reason"] or "") if directive else "",
            )
        )
    return blocks


def apply_change(block: Block, folder: Path) -> None:
    """Write the file that a block with a title shows, or change it as a diff says."""
    path = folder / block.title
    if block.language != "diff":
        assert not path.exists(), f"{block}: {block.title} exists already"
        path.write_text(block.text, encoding="utf-8")
        return
    content = path.read_text(encoding="utf-8")
    for change in re.split(r"^@@.*\n", block.text, flags=re.MULTILINE):
        lines = change.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert content.count(before) == 1, f"{block}: not in {block.title}:\n{before}"
        content = content.replace(before, after)
    path.write_text(content, encoding="utf-8")


class Runner:
    """Runs the blocks of pages in a folder, against a service."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url
        self._outputs: dict[str, str] = {}  # of slow commands, which pages may share
        python = Path(sys.executable).parent
        self.environment = os.environ | {
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
            "SERVICE_URL": url,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": str(folder),
            "COLUMNS": "100",
        }

    def run_page(self, path: Path, *, slow: bool) -> None:
        """Run a page's blocks in order.

        Args:
            slow: also those that are marked as slow.
        """
        output = None
        for block in blocks_of(path):
            if block.treatment == "skip" or (block.treatment == "slow" and not slow):
                output = None
                continue
            try:
                output = self.run(block, output)
            except AssertionError as error:
                raise AssertionError(f"{block}: {error}\n{block.text}") from None

    def run(self, block: Block, output: str | None) -> str | None:
        """Run or check a block; what it printed, or what was printed before it."""
        match block.language:
            case "sh" if block.text in self._outputs:
                return self._outputs[block.text]
            case "sh":
                output = self.run_shell(block.text)
                if block.treatment == "slow":
                    self._outputs[block.text] = output
                return output
            case "python":
                return self.run_python(block)
            case "console":
                self.run_console(block.text)
            case "json" if output is not None:
                check_shape(json.loads(block.text), json.loads(output), "$")
                return output
            case "json":
                json.loads(block.text)
            case "output" if output is not None:
                check_output(block.text, output)
                return output
            case "jsonl":
                for line in block.text.splitlines():
                    json.loads(line)
            case "toml":
                tomllib.loads(block.text)
            case "yaml":
                list(yaml.safe_load_all(block.text))
        return None

    def run_shell(self, text: str) -> str:
        text = text.replace("http://localhost:8000", self.url)
        text = text.replace("localhost:8000", self.url.removeprefix("http://"))
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", UNROLLED + text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result.stdout

    def run_python(self, block: Block) -> str:
        text = block.text.replace("http://localhost:8000", self.url)
        text = text.replace("localhost:8000", self.url.removeprefix("http://"))
        if block.treatment == "slow":  # it may import TensorFlow
            result = subprocess.run(
                [sys.executable, "-c", text],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
            return result.stdout
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            exec(compile(text, str(block), "exec"), {"__name__": "__main__"})
        return printed.getvalue()

    def run_console(self, text: str) -> None:
        for command, expected in commands_of(text):
            # A terminal shows both outputs.
            check_output(expected, self.run_shell(f"{{ {command}\n}} 2>&1"))


def commands_of(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that follows it."""
    commands: list[tuple[str, str]] = []
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\\n"):
                command += next(lines)
            commands.append((command, ""))
        else:
            command, output = commands.pop()
            commands.append((command, output + line))
    return commands


def check_output(expected: str, output: str) -> None:
    """Compare words, with any number for a number and anything for `…`."""
    pattern = []
    for word in re.findall(rf"{ANY}|[^\s{ANY}]+", expected):
        if word == ANY:
            pattern.append(".*?")
            continue
        pieces = (re.escape(piece) for piece in NUMBER.split(word))
        pattern.append(f"(?:{NUMBER.pattern})".join(pieces))
    assert re.fullmatch(
        r"\s*" + r"\s*".join(pattern) + r"\s*", output, re.DOTALL | re.IGNORECASE
    ), f"the page shows\n{expected}\nbut the output is\n{output}"


def check_shape(expected: Any, actual: Any, at: str) -> None:
    """Compare a response with the one that the page shows."""
    match expected, actual:
        case str(), str() if ANY in expected:
            check_output(expected, actual)
        case bool(), bool():
            pass
        case ((int() | float()), (int() | float())):
            assert type(actual) is not bool, f"{at}: {actual!r} is no number"
        case dict(), dict():
            assert list(expected) == list(actual), f"{at} has {list(actual)}"
            for key, value in expected.items():
                check_shape(value, actual[key], f"{at}.{key}")
        case [*first, "…"], list():
            assert len(actual) > len(first), f"{at} has {len(actual)} items"
            for n, (shown, item) in enumerate(zip(first, actual, strict=False)):
                check_shape(shown, item, f"{at}[{n}]")
        case list(), list():
            assert len(expected) == len(actual), f"{at} has {len(actual)} items"
            for n, (shown, item) in enumerate(zip(expected, actual, strict=True)):
                check_shape(shown, item, f"{at}[{n}]")
        case _:
            assert expected == actual, f"{at}: {expected!r} on the page, is {actual!r}"


def prose_of(path: Path) -> list[str]:
    """The lines of a page outside of its code blocks."""
    text = path.read_text(encoding="utf-8")
    return FENCE.sub("", text).splitlines()
