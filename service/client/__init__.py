"""A client of the service, blocking (`Client`) or not (`AsyncClient`).

It needs nothing of the service but this folder.
"""

from service.client.client import AsyncClient, Client
from service.client.results import InvalidAnswer, RequestError
from service.client.session import StreamLost
from service.client.stream import AsyncStream, Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "InvalidAnswer",
    "RequestError",
    "Stream",
    "StreamLost",
]
