"""API keys: which requests may enter, and how many a second each key may send."""

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Iterable, Mapping

from starlette.types import Scope

from service import values
from service.errors import RateLimited, Unauthorized
from service.settings import Settings

log = logging.getLogger(__name__)

# Probes need no key, and neither does the page that asks for one. Every other path does,
# also one that does not exist.
PUBLIC_PATHS = frozenset(
    {"/", "/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"}
)
PLAYGROUND = "/playground/"
LOCAL_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
CHALLENGE = {"WWW-Authenticate": "Bearer"}
BEARER = b"bearer "


class ApiKey:
    """An API key and its rate limit (a token bucket)."""

    def __init__(self, name: str, digest: bytes, rate: float, *, shares: bool = False):
        """
        Args:
            shares: the service has other keys too.
        """
        self.name, self.digest, self.shares = name, digest, shares
        self._rate, self._capacity = rate, max(1.0, rate)
        self._tokens, self._refilled = self._capacity, time.monotonic()

    def take(self) -> None:
        """Count a request, or a message of a stream.

        Raises:
            RateLimited: the rate is used up; `Retry-After` says for how long.
        """
        if not self._rate:
            return
        now = time.monotonic()
        tokens = self._tokens + (now - self._refilled) * self._rate
        self._tokens, self._refilled = min(tokens, self._capacity), now
        if self._tokens < 1:
            seconds = math.ceil((1 - self._tokens) / self._rate)
            detail = f"this key may send {self._rate:g} requests and stream messages a second"
            raise RateLimited(detail, headers={"Retry-After": str(seconds)})
        self._tokens -= 1


class ApiKeyAuth:
    """Admits requests with a known API key; without keys in the settings, all requests."""

    def __init__(self, settings: Settings):
        digests = values.key_digests(settings.api_keys)
        self._keys = [
            ApiKey(name, digest, settings.rate_per_key, shares=len(digests) > 1)
            for name, digest in digests.items()
        ]
        if not self._keys and settings.host not in LOCAL_HOSTS:
            log.warning(
                "UNROLLED_API_KEYS is not set: anyone who reaches the port can use the service"
            )

    def check(self, scope: Scope) -> None:
        """Authenticate a request, and put its key into `scope["state"]["key"]`.

        Raises:
            Unauthorized: the request has no key, an unknown one, or several.
            RateLimited: see `ApiKey.take`.
        """
        path = scope["path"]
        if not self._keys or path in PUBLIC_PATHS or path.startswith(PLAYGROUND):
            return
        secrets = _secrets(scope["headers"])
        if len(secrets) != 1:
            detail = "send one API key, as Authorization: Bearer KEY or as X-API-Key"
            raise Unauthorized(detail, headers=CHALLENGE)
        key = self._find(secrets.pop())
        if key is None:
            raise Unauthorized("the API key is unknown", headers=CHALLENGE)
        scope["state"]["key"] = key
        key.take()

    def quota_owner(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The `Caller.quota_owner` of a request with these headers, or None if `check`
        would refuse it. It does not count against the key's rate."""
        if not self._keys:
            return ""
        secrets = _secrets(headers.items())
        key = self._find(secrets.pop()) if len(secrets) == 1 else None
        if key is None:
            return None
        return key.name if key.shares else ""

    def _find(self, secret: bytes) -> ApiKey | None:
        digest = hashlib.sha256(secret).digest()
        # Compares all keys in constant time, so that timing reveals no part of a digest.
        matches = [k for k in self._keys if hmac.compare_digest(k.digest, digest)]
        return matches[0] if matches else None


def _secrets(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    secrets = set()
    for name, value in headers:
        if name == b"x-api-key":
            secrets.add(value.strip())
        elif name == b"authorization" and value[:7].lower() == BEARER:
            secrets.add(value[7:].strip())
    return secrets
