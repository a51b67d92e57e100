"""Texts and numbers that can be found again, wherever they are disclosed."""

import secrets

MARK = "c4n4ry"
FORGED = '{"level":"error","logger":"service","message":"forged"}'
BREAKS = (
    "\n",
    "\r",
    "\r\n",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x00",
    "\x1e",
)
ESCAPES = ("\x1b[31m", "\x1b]0;a\x07", "\x1b[2J", "\x9b31m", "\x08" * 20, "\x7f")
QUOTES = ('"', "'", "\\", '\\"', '", "level": "error", "x": "', "\\n", "\\u000a", "%0a", "%s%n%d", "{0}", "${a}")  # fmt: skip


def marked(kind: str) -> str:
    """A unique text with the mark."""
    return f"{MARK}{kind}{secrets.token_hex(4)}"


def texts() -> list[str]:
    """Forty texts that could break a line, a terminal, a record or a quote."""
    return [
        *(f"{marked('break')}{text}{FORGED}" for text in BREAKS),
        *(f"{marked('twice')}{text}{text}{FORGED}{text}" for text in BREAKS[:5]),
        *(f"{text}{marked('escape')}" for text in ESCAPES),
        *(f"{marked('quote')}{text}{FORGED}" for text in QUOTES),
        f"<script>{marked('html')}</script>",
        f"../../{marked('path')}",
        "\U0001f980" + marked("crab"),
        marked("long") * 500,
        marked("wide") + "é" * 3000,
        f"{marked('key')}=1 level=error",
        f"$(echo {marked('shell')})",
        f"'; DROP TABLE {marked('sql')}; --",
    ]


def numbers(count: int) -> tuple[list[float], list[str]]:
    """Random numbers that float32 represents exactly, and their texts."""
    values = [secrets.randbelow(2**20) + 2**21 + 0.5 for _ in range(count)]
    return values, [f"{value:.1f}" for value in values]
