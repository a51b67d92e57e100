"""Memory of a server, while it is measured."""

import threading
from pathlib import Path
from typing import Self

from bench.servers import family


def mib(*pids: int) -> float:
    """Of these processes; what they share counts once. Only what is no file's: pages
    of libraries are shared with whoever else runs."""
    total = 0
    for one in pids:
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += int(text.partition("Pss_Anon:")[2].split()[0])
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
    return total / 1024


class Memory:
    """Before, at most, and after; each half second for as long as the block lasts."""

    def __init__(self, pid: int):
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.before = self.most = self.after = mib(*family(pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(5)
        self.after = mib(*family(self._pid))

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            self.most = max(self.most, mib(*family(self._pid)))
