"""What a thread is asked to do, and what it does by itself now and then."""

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future

from .errors import Stopping

log = logging.getLogger(__name__)


class Errands:
    """One after another, in the thread that calls `run`."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Future[None], Callable[[], None]]]
        self._asked = queue.SimpleQueue()
        self._stopped = False

    def ask(self, work: Callable[[], None]) -> "Future[None]":
        """Have it done; the future has what it raises, or `Stopping`."""
        future: Future[None] = Future()
        if self._stopped:
            future.set_exception(Stopping("the service is stopping"))
        else:
            self._asked.put((future, work))
        return future

    def stop(self) -> None:
        """Do no more."""
        self.ask(lambda: None)  # wakes it
        self._stopped = True

    def run(self, look: Callable[[], None], seconds: float) -> None:
        """Do what is asked, and `look` every so many seconds (0: never); return when
        stopped. Whatever `look` raises is logged."""
        due = time.monotonic() + seconds
        while not self._stopped:
            left = max(0.0, due - time.monotonic()) if seconds else None
            try:
                future, work = self._asked.get(timeout=left)
            except queue.Empty:
                due = time.monotonic() + seconds
                self._look(look)
                continue
            try:
                work()
                future.set_result(None)
            except Exception as error:
                future.set_exception(error)
        while not self._asked.empty():
            future, _ = self._asked.get()
            future.set_exception(Stopping("the service is stopping"))

    def _look(self, look: Callable[[], None]) -> None:
        try:
            look()
        except OSError as error:
            log.error("the bundles can't be read: %s", error)
        except Exception:  # whatever it is: what is served goes on
            log.exception("the bundles could not be looked through")
