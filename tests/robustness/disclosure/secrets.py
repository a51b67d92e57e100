"""Texts that can be found again, wherever they come out."""

import secrets

MARK = "c4n4ry"
FORGED = '{"level":"error","logger":"service","message":"forged"}'


def fresh(kind: str) -> str:
    """One that was never used before."""
    return f"{MARK}{kind}{secrets.token_hex(4)}"


def payloads() -> list[str]:
    """Forty texts that would break a line, a terminal, a record or a quote."""
    breaks = (
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
    made = [f"{fresh('break')}{one}{FORGED}" for one in breaks]
    made += [f"{fresh('twice')}{one}{one}{FORGED}{one}" for one in breaks[:5]]
    escapes = ("\x1b[31m", "\x1b]0;a\x07", "\x1b[2J", "\x9b31m", "\x08" * 20, "\x7f")
    made += [f"{one}{fresh('escape')}" for one in escapes]
    quotes = (
        '"',
        "'",
        "\\",
        '\\"',
        '", "level": "error", "x": "',
        "\\n",
        "\\u000a",
        "%0a",
        "%s%n%d",
        "{0}",
        "${a}",
    )
    made += [f"{fresh('quote')}{one}{FORGED}" for one in quotes]
    made += [
        f"<script>{fresh('html')}</script>",
        f"../../{fresh('path')}",
        "\U0001f980" + fresh("crab"),
    ]
    made += [
        fresh("long") * 500,
        fresh("wide") + "é" * 3000,
        f"{fresh('key')}=1 level=error",
    ]
    made += [f"$(echo {fresh('shell')})", f"'; DROP TABLE {fresh('sql')}; --"]
    return made


def numbers(count: int) -> tuple[list[float], list[str]]:
    """Numbers that a float32 has exactly, and how they would be told."""
    made = [(secrets.randbelow(2**20) + 2**21 + 0.5) for _ in range(count)]
    return made, [f"{one:.1f}" for one in made]
