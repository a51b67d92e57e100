"""Who may ask: by a key, as often as a key may."""

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Mapping

from starlette.types import Scope

from service import values
from service.errors import RateLimited, Unauthorized
from service.settings import Settings

log = logging.getLogger(__name__)

# Probes need no key, nor does the page that asks for one; all else does, whatever it
# is and wherever it was found.
OPEN = frozenset(
    {"/", "/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"}
)
PAGE = "/playground/"
LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})
CHALLENGE = {"WWW-Authenticate": "Bearer"}
BEARER = b"bearer "
KEY_HEADERS = (b"x-api-key", b"authorization")


class ApiKey:
    """One of those that may ask, and the requests that it has left (a token bucket)."""

    def __init__(self, name: str, digest: bytes, rate: float, *, shares: bool = False):
        """
        Args:
            shares: there are other keys.
        """
        self.name, self.digest, self.shares = name, digest, shares
        self._rate, self._most = rate, max(1.0, rate)
        self._left, self._since = self._most, time.monotonic()

    def take(self) -> None:
        """Use up a request, or a message of a stream.

        Raises:
            RateLimited: none is left; with the seconds until there is one.
        """
        if not self._rate:
            return
        now = time.monotonic()
        left = self._left + (now - self._since) * self._rate
        self._left, self._since = min(left, self._most), now
        if self._left < 1:
            seconds = math.ceil((1 - self._left) / self._rate)
            told = f"at most {self._rate:g} requests and messages of streams a second with this key"
            raise RateLimited(told, headers={"Retry-After": str(seconds)})
        self._left -= 1


class ApiKeyAuth:
    """Lets requests with a key in; without any key in the settings, all of them."""

    def __init__(self, settings: Settings):
        digests = values.key_digests(settings.api_keys)
        self._keys = [
            ApiKey(name, digest, settings.rate_per_key, shares=len(digests) > 1)
            for name, digest in digests.items()
        ]
        if not self._keys and settings.host not in LOCAL:
            log.warning(
                "UNROLLED_API_KEYS is not set: whoever reaches the port may ask"
            )

    def check(self, scope: Scope) -> None:
        """That a request may come in; its key goes into its state.

        Raises:
            Unauthorized: it has no key, or a wrong one, or several.
            RateLimited: as `ApiKey.take`.
        """
        path = scope["path"]
        if not self._keys or path in OPEN or path.startswith(PAGE):
            return
        given = set()
        for name, value in scope["headers"]:
            if name == b"x-api-key":
                given.add(value.strip())
            elif name == b"authorization" and value[:7].lower() == BEARER:
                given.add(value[7:].strip())
        if len(given) != 1:
            told = "Authorization: Bearer KEY, or X-API-Key, must have one key"
            raise Unauthorized(told, headers=CHALLENGE)
        key = self._known(given.pop())
        if key is None:
            raise Unauthorized("this key is not known here", headers=CHALLENGE)
        scope["state"]["key"] = key
        key.take()

    def share(self, headers: Mapping[bytes, bytes]) -> str | None:
        """As `Caller.quota_owner`, of a request with these headers, of which it has each
        once; None: it may not come in. It counts against no rate."""
        given = [headers[name] for name in KEY_HEADERS if name in headers]
        if not self._keys:
            return ""
        if len(given) != 1:
            return None
        bare = given[0][7:] if given[0][:7].lower() == BEARER else given[0]
        key = self._known(bare.strip())
        return None if key is None else key.name if key.shares else ""

    def _known(self, given: bytes) -> ApiKey | None:
        digest = hashlib.sha256(given).digest()
        # All are compared, in a time that says nothing of which are alike.
        fitting = [k for k in self._keys if hmac.compare_digest(k.digest, digest)]
        return fitting[0] if fitting else None
