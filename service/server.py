"""uvicorn, told how to stop."""

import os
from types import FrameType

import uvicorn
from fastapi import FastAPI

from .settings import Settings


class Server(uvicorn.Server):
    """A server whose clean stop ends with exit code 0.

    uvicorn raises the signal again when it is done, so that a stop that was asked
    for looks like a crash (exit code 143) to whoever started the process.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # told twice: wait for nothing and nobody
            os._exit(1)
        self.should_exit = True

    def stop(self) -> None:
        """Stop as if told by a signal."""
        self.should_exit = True


def make(app: FastAPI, settings: Settings) -> Server:
    """A server of the app; nothing runs yet."""
    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.grace_seconds,
            ws="websockets-sansio",
        )
    )
