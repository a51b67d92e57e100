"""Requests of text beside FastAPI around a Keras network with `TextVectorization`, and
around a tagger of spaCy.

    python -m bench.serving.text [--models tags intents] [--spacy PYTHON]

Texts of the test parts, one in a request, to networks of the same size: those of the
bundles, and their layers in Keras with random weights. `--spacy` is an interpreter that
has spacy, fastapi and uvicorn: its tagger is of a like size, has random weights too, and
runs in two processes. Servers take turns; figures are medians.
"""

import asyncio
import json
import statistics
import sys
import time
from typing import cast

from bench.environment import ROOT, describe_machine, parser, progress
from bench.servers import Server, free_port, started, unrolled
from bench.serving.competitors import UVICORN
from model.bundle import bundle
from model.bundle.metadata import Ids, Metadata
from model.datasets import builtin

TEXTS = 2_000
BUNDLES = ROOT / "bundles"


def main() -> None:
    command = parser("bench.serving.text", __doc__)
    add = command.add_argument
    add("--models", nargs="+", default=["tags", "intents"], help="bundles")
    add("--connections", nargs="+", type=int, default=[1, 32])
    add("--turns", type=int, default=3)
    add("--seconds", type=float, default=4, help="of a run")
    add("--spacy", metavar="PYTHON", help="interpreter that has spaCy")
    options = command.parse_args()
    describe_machine()
    for name in options.models:
        metadata = bundle.read(BUNDLES / name / "1").metadata
        servers = [_ours(metadata), _keras(metadata)]
        if options.spacy and metadata.task == "label":
            servers.append(_spacy(metadata, options.spacy))
        _compare(servers, metadata, options.connections, options.turns, options.seconds)


def _compare(
    servers: list[Server],
    metadata: Metadata,
    connections: list[int],
    turns: int,
    seconds: float,
) -> None:
    """Run the servers by turns, and print their rates."""
    texts = _texts(metadata)
    results: dict[tuple[str, int], list[float]] = {}
    with started(servers) as ready:
        for turn in range(turns):
            for server in ready[turn % len(ready) :] + ready[: turn % len(ready)]:
                server.resume()
                for count in connections:
                    rate = asyncio.run(_load(server, texts, count, seconds))
                    results.setdefault((server.name, count), []).append(rate)
                    progress(f"{server.name}, {count} connections: {rate:.0f}/s")
                server.pause()
        names = [server.name for server in ready]
    for count in connections:
        first, *others = (statistics.median(results[name, count]) for name in names)
        line = ", ".join(
            f"{name} {rate:,.0f} ({first / rate:.1f}x)"
            for name, rate in zip(names[1:], others, strict=True)
        )
        print(
            f"{metadata.name}, {count} connections: {names[0]} {first:,.0f} requests/s;"
            f" {line}",
            flush=True,
        )


def _texts(metadata: Metadata) -> list[bytes]:
    """The bodies of requests: texts of the test part."""
    data = builtin.load(metadata.name).part("test")
    between = "" if metadata.input.kind == "characters" else " "
    strings, frames = data.strings or (), data.frames[:, 0].astype(int).tolist()
    bodies = []
    for start, end in zip(data.offsets[:TEXTS], data.offsets[1:], strict=False):
        text = between.join(strings[token] for token in frames[start:end])
        bodies.append(json.dumps({"texts": [text]}).encode())
    return bodies


def _ours(metadata: Metadata) -> Server:
    server = unrolled(BUNDLES, precision="auto")
    server.path = f"/{metadata.task}"
    return server


def _keras(metadata: Metadata) -> Server:
    port, about = free_port(), cast(Ids, metadata.input)
    app = ["bench.serving.peers.fastapi_text:app", "--port", str(port)]
    network = {
        "split": "character" if about.kind == "characters" else "whitespace",
        "embedding": sum(about.widths),
        "cell": metadata.cell,
        "hidden": metadata.hidden,
        "layers": metadata.layers,
        "both": metadata.bidirectional,
        "by_step": metadata.task == "label",
        "classes": len(metadata.classes),
    }
    folder = BUNDLES / metadata.name / metadata.version
    return Server(
        "FastAPI, Keras",
        [sys.executable, *UVICORN, *app],
        port,
        "/ready",
        path="/predict",
        environment={"BUNDLE": str(folder), "NETWORK": json.dumps(network)},
        folder=ROOT,
    )


def _spacy(metadata: Metadata, python: str) -> Server:
    port = free_port()
    app = ["fastapi_spacy:app", "--port", str(port), "--workers", "2"]
    return Server(
        "FastAPI, spaCy",
        [python, *UVICORN, *app],
        port,
        "/ready",
        path="/label",
        environment={"CLASSES": json.dumps(metadata.classes)},
        folder=ROOT / "bench" / "serving" / "peers",
    )


async def _load(
    server: Server, bodies: list[bytes], count: int, seconds: float
) -> float:
    """Send requests over so many connections; returns those answered a second."""
    done, end = 0, time.perf_counter() + seconds
    head = f"POST {server.path} HTTP/1.1\r\nHost: here\r\n"
    head += "Content-Type: application/json\r\n"

    async def connection(first: int) -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        at = first
        while time.perf_counter() < end:
            body = bodies[at % len(bodies)]
            at += count
            length = f"Content-Length: {len(body)}\r\n\r\n"
            writer.write((head + length).encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode())
            size = answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(size))
            done += 1
        writer.close()

    await asyncio.gather(*(connection(number) for number in range(count)))
    return done / seconds


if __name__ == "__main__":
    main()
