"""What the service's memory does while something is tried."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.robustness.harness.service import Service

EACH = 0.05  # seconds between looks


@dataclass(slots=True)
class Memory:
    """In MiB, of all processes together."""

    before: float
    peak: float = 0.0
    after: float = 0.0

    @property
    def risen(self) -> float:
        return self.peak - self.before

    @property
    def grown(self) -> float:
        return self.after - self.before


@contextmanager
def watched(service: Service, allowed: float) -> Iterator[Memory]:
    """Watch it until the block ends, and until no more than `allowed` is left of what
    it took, or until it is calm."""
    memory = Memory(service.rss())
    over = threading.Event()

    def look() -> None:
        while not over.wait(EACH):
            memory.peak = max(memory.peak, service.rss())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield memory
    finally:
        over.set()
        looking.join()
        memory.after = service.rss()
        if memory.grown > allowed:
            memory.after = service.settled_rss()
        memory.peak = max(memory.peak, memory.after)
