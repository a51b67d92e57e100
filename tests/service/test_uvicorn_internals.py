"""The private names of uvicorn and websockets that the service uses.

They may change with any release, so `pyproject.toml` allows one minor version. Before
another one is allowed, these tests must pass with it.
"""

import asyncio
import inspect

import pytest
from uvicorn import Config, Server
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import (
    WebSocketsSansIOProtocol,
)
from uvicorn.server import ServerState
from websockets.protocol import Protocol
from websockets.server import ServerProtocol

CONNECTION = (
    "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline", "scope", "transport",
    "app_state", "server_state", "tasks", "expect_100_continue",
    "_unset_keepalive_if_required", "_should_upgrade", "connection_made", "connection_lost", "data_received",
    "handle_websocket_upgrade", "on_body", "on_header", "on_headers_complete", "on_message_begin",
    "on_message_complete", "on_response_complete", "on_url", "pause_writing", "resume_writing",
    "send_400_response", "shutdown",
)  # fmt: skip
CYCLE = (
    "disconnected", "keep_alive", "message_event", "response_complete", "response_started", "scope",
)  # fmt: skip
FLOW = ("pause_reading", "resume_reading", "write_paused")
WEB_SOCKET = (
    "app_state", "close_sent", "config", "conn", "connections", "curr_msg_data_type", "disconnected", "frames",
    "handshake_complete", "handshake_initiated", "queue", "read_paused", "transport",
    "connection_made", "connection_lost", "data_received", "handle_close", "handle_connect",
    "handle_parser_exception", "pause_writing", "resume_writing", "run_asgi", "send",
    "send_receive_event_to_app", "shutdown",
)  # fmt: skip
LIBRARY = ("accept", "close_sent", "events", "fail", "handshake_exc", "parser", "parser_exc")  # fmt: skip
SERVER = ("handle_exit", "lifespan", "server_state", "servers", "should_exit", "shutdown", "started", "startup")  # fmt: skip


async def _app(scope, receive, send):
    pass


@pytest.fixture
async def objects():
    config = Config(_app, log_config=None)
    config.load()
    server = Server(config)
    server.lifespan = config.lifespan_class(config)
    server.servers = []  # by `startup`
    state = ServerState()
    arguments = {"config": config, "server_state": state, "app_state": {}}
    connection = HttpToolsProtocol(**arguments)
    connection.connection_made(asyncio.Transport({"socket": None}))
    return {
        HttpToolsProtocol: (connection, CONNECTION),
        FlowControl: (connection.flow, FLOW),
        WebSocketsSansIOProtocol: (WebSocketsSansIOProtocol(**arguments), WEB_SOCKET),
        Protocol: (ServerProtocol(), LIBRARY),
        Server: (server, SERVER),
    }


@pytest.mark.anyio
async def test_names(objects):
    """Every private name exists."""
    for instance, names in objects.values():
        assert [name for name in names if not hasattr(instance, name)] == []


def test_cycle():
    """A request's cycle sets the attributes that the service reads."""
    source = inspect.getsource(RequestResponseCycle)
    assert [name for name in CYCLE if f"self.{name} = " not in source] == []
    assert STATUS_LINE[503] == b"HTTP/1.1 503 Service Unavailable\r\n"


def test_version():
    """`pyproject.toml` allows one minor version of uvicorn."""
    import tomllib

    from tests.support.servers import ROOT

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = [d for d in project["dependencies"] if d.startswith("uvicorn")]
    low, high = bound.partition("]")[2].split(",")
    minor = int(low.removeprefix(">=0."))
    assert high == f"<0.{minor + 1}"
