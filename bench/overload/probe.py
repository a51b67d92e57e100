"""A prober, as an orchestrator has one: is it alive, is it ready?"""

import http.client
import itertools
import threading
import time
from typing import Self

TIMEOUT = 1.0
EVERY = 0.1


class Probe:
    """Asks a path over a new connection each time, for as long as the block lasts."""

    def __init__(self, port: int, path: str):
        self._port, self._path = port, path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.statuses: list[int] = []  # 0: no answer in time
        self.slowest = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(5)

    @property
    def failed(self) -> int:
        return sum(status != 200 for status in self.statuses)

    @property
    def flaps(self) -> int:
        """How often it changed from ready to not."""
        fine = [status == 200 for status in self.statuses]
        return sum(a and not b for a, b in itertools.pairwise(fine))

    def _ask(self) -> None:
        while not self._ended.wait(EVERY):
            begun = time.perf_counter()
            self.statuses.append(self.status())
            self.slowest = max(self.slowest, time.perf_counter() - begun)

    def status(self) -> int:
        """Asked once."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._port, timeout=TIMEOUT
        )
        begun = time.perf_counter()
        try:
            connection.request("GET", self._path)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
        return status if time.perf_counter() - begun <= TIMEOUT else 0
