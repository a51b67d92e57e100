"""Retries of requests: how often, and how long to wait before each.

Predictions are pure: a request that is sent twice gets the same answer twice, and changes
nothing in the service. So a request whose connection broke may be sent again.
"""

import random
import time

from service.client.errors import ClientError, ConnectionLost, RequestError

FIRST_SECONDS = 0.1  # before the first retry; twice as long before each further one
# Too many requests; a proxy without an answer of the service; the service is overloaded.
STATUSES = {429, 502, 503}


class Backoff:
    """The waits between the attempts at one request."""

    def __init__(self, retries: int, seconds: float):
        """
        Args:
            retries: how many at most.
            seconds: since now, in which the last retry must begin.
        """
        self._retries, self._deadline = retries, time.monotonic() + seconds
        self._attempt = 0

    def seconds_after(self, error: ClientError) -> float:
        """The seconds to wait before the request is sent again.

        Raises:
            ClientError: the error itself, if a retry is of no use, or there were enough.
        """
        shortest = 0
        if isinstance(error, RequestError):
            if error.status not in STATUSES:
                raise error
            shortest = error.retry_after or 0
        elif not isinstance(error, ConnectionLost):
            raise error
        # A random share, so that clients refused together don't come back together.
        wait = shortest + FIRST_SECONDS * 2.0**self._attempt * random.uniform(0.5, 1.5)
        self._attempt += 1
        if self._attempt > self._retries or time.monotonic() + wait > self._deadline:
            raise error
        return wait
