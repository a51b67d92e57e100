"""The client's commands ask the service that the environment describes."""

import os
import subprocess
import sys

import pytest

from service.cli.address import default_url
from service.settings import load
from tests.service.cli.commands import invoke
from tests.support.processes import free_port
from tests.support.servers import ROOT, SECONDS


def test_default_url():
    """The address is made of the service's own settings."""
    for environment, url in (
        ({}, "http://127.0.0.1:8000"),
        ({"PORT": "8377"}, "http://127.0.0.1:8377"),
        ({"PORT": "0"}, "http://127.0.0.1:8000"),
        ({"HOST": "", "PORT": ""}, "http://127.0.0.1:8000"),
        ({"HOST": "0.0.0.0", "PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"HOST": "10.1.2.3"}, "http://10.1.2.3:8000"),
        ({"HOST": "::"}, "http://[::1]:8000"),
        ({"HOST": "fe80::1"}, "http://[fe80::1]:8000"),
        ({"HOST": "localhost"}, "http://localhost:8000"),
        ({"TLS_CERTIFICATE": "chain.pem"}, "https://127.0.0.1:8000"),
    ):
        assert default_url({f"UNROLLED_{k}": v for k, v in environment.items()}) == url
    assert default_url({"unrolled_port": "8377"}) == "http://127.0.0.1:8377"


@pytest.mark.slow
def test_environment(server):
    """`UNROLLED_PORT` and `UNROLLED_HOST` choose the service, and `--help` shows it."""
    port = server.rpartition(":")[2]
    environment = os.environ | {"UNROLLED_PORT": port, "UNROLLED_HOST": "0.0.0.0"}
    for arguments, text in (
        (["health"], "ready"),
        (["health", "--help"], f"http://127.0.0.1:{port}"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "service", *arguments],
            cwd=ROOT,
            env=environment | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert text in result.stdout


def test_url(server):
    """`UNROLLED_URL` is the address, and `--url` comes before it. The service, which does
    not use it, accepts it in its environment."""
    nobody = f"http://127.0.0.1:{free_port()}"
    assert invoke("health", env={"UNROLLED_URL": server}).stdout == "ready\n"
    assert (
        invoke("health", "--url", server, env={"UNROLLED_URL": nobody}).exit_code == 0
    )
    result = invoke("health", env={"UNROLLED_URL": nobody})
    assert result.stdout.startswith(f"{nobody}: Connection refused.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNROLLED_URL", server)
        load()
