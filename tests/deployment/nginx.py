"""nginx with deploy/nginx.conf, in front of a port."""

import shutil
import socket
import subprocess
from contextlib import contextmanager

import pytest

from tests.support.processes import free_port
from tests.support.servers import ROOT, SECONDS, wait

TEXT = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def accepts(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def proxied(folder, to, **changes):
    """Run nginx in front of a port until the block ends; yields its address.

    Args:
        changes: texts of the configuration to replace.
    """
    port = free_port()
    changes = {
        "unrolled:8000": f"127.0.0.1:{to}",
        "listen 8080": f"listen 127.0.0.1:{port}",
        "/tmp/": f"{folder}/",
        "/dev/stdout": f"{folder}/access.log",
        "/dev/stderr": f"{folder}/error.log",
    } | changes
    text = TEXT
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    file = folder / "nginx.conf"
    file.write_text(text)
    # A single process: workers run as a user who may not enter the folder.
    command = [NGINX, "-c", file, "-g", "daemon off; master_process off;"]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:

        def listens():
            assert process.poll() is None, (folder / "output").read_text()
            return accepts(port)

        wait(listens, "nginx listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(SECONDS)
