"""Compressed bodies and responses of the other servers' protocols."""

import gzip
import json
import zlib

import numpy as np
import pytest

from tests.service.compat.protocols import (
    CLASSIFY,
    FRAME,
    HEADER,
    INFER,
    PREDICT,
    assert_answers,
    infer,
    instances,
    refused,
)
from tests.support.bundles import random_frames
from tests.support.servers import send

ENCODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}
REQUESTS = [
    (PREDICT, json.dumps(instances()).encode()),
    (CLASSIFY, b'{"examples": [{"frames": [1, 2, 3]}]}'),
    (INFER, json.dumps(infer(id="x")).encode()),
]


@pytest.mark.parametrize("encoding", ENCODINGS)
class TestBodies:
    def post(self, http, path, body, encoding):
        return http.post(path, content=body, headers={"Content-Encoding": encoding})

    def test_good(self, http, encoding):
        """A compressed body gets the response of the plain one."""
        for path, body in REQUESTS:
            expected = http.post(path, content=body).json()
            for padding in (0, 100_000):
                packed = ENCODINGS[encoding](body + b" " * padding)
                for name in (encoding, encoding.upper()):
                    response = self.post(http, path, packed, name)
                    assert response.status_code == 200, response.text
                    assert response.json() == expected

    def test_damaged(self, http, encoding):
        """A body that is not one whole stream of the encoding is 400."""
        other = next(ENCODINGS[name] for name in ENCODINGS if name != encoding)
        for path, body in REQUESTS:
            packed = ENCODINGS[encoding](body)
            broken = bytearray(packed)
            broken[-2] ^= 1  # of the checksum, or of the length
            for bad in (
                b"",
                body,
                packed[:1],
                packed[: len(packed) // 2],
                packed[:-1],
                packed + b"x",
                packed + other(body),
                other(body),
                bytes(broken),
                zlib.compress(body, wbits=-15),
            ):
                refused(self.post(http, path, bad, encoding), 400)
        assert_answers(http)

    def test_several_streams(self, http, encoding):
        """gzip allows several members; deflate is one stream."""
        for path, body in REQUESTS:
            packed = ENCODINGS[encoding](body[:20]) + ENCODINGS[encoding](body[20:])
            response = self.post(http, path, packed, encoding)
            assert response.status_code == (200 if encoding == "gzip" else 400)

    @pytest.mark.slow
    def test_decompression_limit(self, http, encoding):
        """A body that decompresses beyond the limit is 413, in one member or many."""
        for (path, _), members in zip(REQUESTS, (1, 10, 1), strict=True):
            packed = ENCODINGS[encoding](bytes(100 * 2**20 // members))
            response = self.post(http, path, packed * members, encoding)
            assert "decompressed" in refused(response, 413)
            assert_answers(http)


def test_two_headers(server):
    """Of two Content-Encoding headers the first counts."""
    body = gzip.compress(json.dumps(infer()).encode())
    for first, status in (("gzip", 200), ("identity", 400), ("br", 415)):
        head = (
            f"POST {INFER} HTTP/1.1\r\nHost: here\r\nContent-Encoding: {first}\r\n"
            f"Content-Encoding: identity\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        assert send(server, head.encode() + body)[0] == status


def requests_of(steps, *, binary=False):
    """A path and a body for each protocol, whose answers have so many steps."""
    frames = random_frames(np.random.default_rng(1), steps).tolist()
    parameters = {"binary_data_output": binary}
    yield "/v1/models/tags:predict", instances(frames)
    yield "/v2/models/tags/infer", infer(frames, parameters=parameters, id="x")


def uncompressed(http, path, body):
    response = http.post(path, json=body, headers={"Accept-Encoding": "identity"})
    assert response.status_code == 200
    assert "content-encoding" not in response.headers
    return response


ACCEPTED = [
    (None, None),
    ("", None),
    ("identity", None),
    ("*", None),
    ("br", None),
    ("br, zstd", None),
    ("x-gzip", None),
    ("gzip;q=0", None),
    ("gzip;q=0.000, br", None),
    ("gzip; q=0, *", None),
    ("gzip;q=0, deflate;q=0", None),
    ("gzip", "gzip"),
    ("GZIP", "gzip"),
    ("gzip, deflate, br", "gzip"),
    ("br;q=1, gzip;q=0.5", "gzip"),
    ("gzip;q=0.001", "gzip"),
    ("gzip ; q=1.000", "gzip"),
    ("deflate", "deflate"),
    ("deflate, br", "deflate"),
    ("gzip;q=0, deflate", "deflate"),
    ("identity;q=0, deflate", "deflate"),
]


class TestResponses:
    def test_encoding(self, http):
        """A response is compressed with an encoding that the client accepts, else not."""
        for binary in (False, True):
            for path, body in requests_of(300, binary=binary):
                plain = uncompressed(http, path, body)
                for accepted, encoding in ACCEPTED:
                    headers = {"Accept-Encoding": accepted or ""}
                    request = http.stream("POST", path, json=body, headers=headers)
                    with request as response:
                        raw = b"".join(response.iter_raw())
                    assert response.headers.get("content-encoding") == encoding
                    assert int(response.headers["content-length"]) == len(raw)
                    if encoding is not None:
                        assert response.headers["vary"].lower() == "accept-encoding"
                        assert len(raw) < len(plain.content)
                        wbits = 31 if encoding == "gzip" else 15
                        raw = zlib.decompress(raw, wbits=wbits)
                    assert raw == plain.content
                    # The length of the JSON is that of the plain response.
                    assert response.headers.get(HEADER) == plain.headers.get(HEADER)

    def test_size(self, http):
        """Only responses of a KiB or more are compressed."""
        for steps in (1, 10, 25, 30, 60, 9000):
            for path, body in requests_of(steps):
                plain = uncompressed(http, path, body)
                headers = {"Accept-Encoding": "gzip"}
                response = http.post(path, json=body, headers=headers)
                compressed = "content-encoding" in response.headers
                assert compressed == (len(plain.content) >= 1024)
                assert response.json() == plain.json()

    def test_only_predictions(self, http):
        """Metadata, errors and the service's own API are never compressed."""
        headers = {"Accept-Encoding": "gzip, deflate"}
        for path in (
            *(
                "/v1/models/walks",
                "/v1/models/walks/metadata",
                "/v2",
                "/v2/models/walks",
            ),
            *("/v2/models/walks/config", "/v2/models/walks/stats", "/v2/models/stats"),
        ):
            response = http.get(path, headers=headers)
            assert response.status_code == 200
            assert "content-encoding" not in response.headers
            assert len(response.content) >= 1024 or not path.endswith("metadata")
        infinite = [FRAME] * 1000 + [[1e39] * 3] * 10
        body = instances(*[[FRAME]] * 100, infinite)
        response = http.post(PREDICT, json=body, headers=headers)
        assert len(refused(response, 400)) >= 1024
        body = {"model": "tags", "sequences": [[FRAME] * 100]}
        response = http.post("/label", json=body, headers=headers)
        assert response.status_code == 200
        assert "content-encoding" not in response.headers
