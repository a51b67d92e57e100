"""Requests of text beside FastAPI around a Keras network with `TextVectorization`.

    python -m bench.serving.text

Sentences of the Brown corpus, one in a request, to networks of the same size: `tags`, and
its layers in Keras with random weights. Servers take turns; figures are medians.
"""

import asyncio
import json
import statistics
import sys
import time

from bench.environment import ROOT, describe_machine, parser, progress
from bench.servers import Server, free_port, started, unrolled
from bench.serving.competitors import UVICORN
from model.bundle import bundle
from model.datasets import builtin

SENTENCES = 2_000
BUNDLE = ROOT / "bundles" / "tags" / "1"


def main() -> None:
    command = parser("bench.serving.text", __doc__)
    add = command.add_argument
    add("--connections", nargs="+", type=int, default=[1, 32])
    add("--turns", type=int, default=3)
    add("--seconds", type=float, default=4, help="of a run")
    options = command.parse_args()
    describe_machine()
    texts = _sentences()
    results: dict[tuple[str, int], list[float]] = {}
    ours = unrolled(BUNDLE.parents[1], precision="auto")
    with started([ours, _keras()]) as servers:
        for turn in range(options.turns):
            for server in servers[turn % 2 :] + servers[: turn % 2]:
                server.resume()
                for count in options.connections:
                    rate = asyncio.run(_load(server, texts, count, options.seconds))
                    results.setdefault((server.name, count), []).append(rate)
                    progress(f"{server.name}, {count} connections: {rate:.0f}/s")
                server.pause()
    names = [server.name for server in servers]
    for count in options.connections:
        first, *others = (statistics.median(results[name, count]) for name in names)
        line = ", ".join(
            f"{name} {rate:,.0f} ({first / rate:.1f}x)"
            for name, rate in zip(names[1:], others, strict=True)
        )
        print(f"{count} connections: {names[0]} {first:,.0f} requests/s; {line}")


def _sentences() -> list[bytes]:
    """The bodies of requests, sentences of the test part."""
    data = builtin.load("tags").part("test")
    strings, frames = data.strings or (), data.frames[:, 0].astype(int).tolist()
    bodies = []
    for start, end in zip(data.offsets[:SENTENCES], data.offsets[1:], strict=False):
        text = " ".join(strings[word] for word in frames[start:end])
        bodies.append(json.dumps({"texts": [text]}).encode())
    return bodies


def _keras() -> Server:
    metadata = bundle.read(BUNDLE).metadata
    port = free_port()
    app = ["bench.serving.peers.fastapi_text:app", "--port", str(port)]
    network = {
        "embedding": sum(metadata.input.widths),  # type: ignore[union-attr]
        "hidden": metadata.hidden,
        "layers": metadata.layers,
        "classes": len(metadata.classes),
    }
    return Server(
        "FastAPI, Keras",
        [sys.executable, *UVICORN, *app],
        port,
        "/ready",
        environment={"BUNDLE": str(BUNDLE), "NETWORK": json.dumps(network)},
        folder=ROOT,
    )


async def _load(
    server: Server, bodies: list[bytes], count: int, seconds: float
) -> float:
    """Send requests over so many connections; returns those answered a second."""
    done, end = 0, time.perf_counter() + seconds

    async def connection(first: int) -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        at = first
        while time.perf_counter() < end:
            body = bodies[at % len(bodies)]
            at += count
            head = b"POST /label HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode())
            length = answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            done += 1
        writer.close()

    await asyncio.gather(*(connection(number) for number in range(count)))
    return done / seconds


if __name__ == "__main__":
    main()
