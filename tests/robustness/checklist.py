"""Every row: importing this fills `ROWS`."""

from . import (  # noqa: F401 (each puts its rows there)
    amplification,
    callers,
    compressed,
    corpus,
    crash,
    crosstalk,
    deadlines,
    endless,
    fairness,
    file_bombs,
    fuzz,
    generated,
    greedy,
    handshakes,
    isolation,
    keys,
    leaks,
    limits,
    memory_attacks,
    nesting,
    openapi,
    overload,
    refusal_memory,
    refusals,
    secrecy,
    shapes,
    shutdown,
    slow_clients,
    sockets,
    startup,
    steadiness,
    tallies,
)
from .rows import ROWS

__all__ = ["ROWS"]
