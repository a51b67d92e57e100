"""Python clients of the service: `Client` blocks, `AsyncClient` is for asyncio.

This folder imports nothing else of the service.
"""

from service.client.async_client import AsyncClient
from service.client.client import Client
from service.client.errors import (
    ClientError,
    ConnectionLost,
    InvalidAnswer,
    RequestError,
    StreamLost,
)
from service.client.models import ModelDetails, ModelInfo
from service.client.stream import AsyncStream, Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "ClientError",
    "ConnectionLost",
    "InvalidAnswer",
    "ModelDetails",
    "ModelInfo",
    "RequestError",
    "Stream",
    "StreamLost",
]
