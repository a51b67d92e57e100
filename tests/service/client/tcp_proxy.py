"""A TCP proxy between a client and the service, which disturbs the connections."""

import socket
import threading
from contextlib import suppress

import httpx

from tests.support.servers import SECONDS


class Proxy:
    """A TCP proxy, which can cut its connections, or keep back what clients send."""

    def __init__(self, url):
        at = httpx.URL(url)
        self._to = at.host, at.port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._pairs = []
        self._passing = threading.Event()
        self._passing.set()
        self.accepted = 0
        self._threads = []
        self._spawn(self._accept)

    def keep_back(self):
        """Keep back what clients send, until `pass_on`."""
        self._passing.clear()

    def pass_on(self):
        self._passing.set()

    def cut(self):
        """Cut every connection; new ones work."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for connection in pair:
                # Wakes its reader, which a close does not.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _spawn(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with suppress(OSError):
            while True:
                near = self._listening.accept()[0]
                self.accepted += 1
                far = socket.create_connection(self._to, SECONDS)
                for connection in (near, far):
                    connection.settimeout(None)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pairs.append((near, far))
                head = b""  # a handshake is never kept back
                while not head.endswith(b"\r\n\r\n"):
                    head += near.recv(1)
                far.sendall(head)
                self._spawn(self._pump, near, far, self._passing)
                self._spawn(self._pump, far, near, None)

    def _pump(self, source, sink, passing):
        with suppress(OSError):
            while part := source.recv(65536):
                if passing is not None:
                    assert passing.wait(SECONDS)
                sink.sendall(part)
        for connection in (source, sink):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._passing.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        for thread in self._threads:
            thread.join(SECONDS)
