"""The image for nodes of a Ray cluster, built and started."""

import json
import shutil
import subprocess

import pytest

from tests.support.ray import CONFIG
from tests.support.servers import ROOT, wait

IMAGE = "unrolled:test-ray"
NODE = ("start", "--head", "--block", "--num-cpus", "2")  # the cores of a replica
READY = (
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"
)


def docker(*arguments, check=True):
    command = ["docker", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def engine():
    return shutil.which("docker") and docker("info", check=False).returncode == 0


@pytest.mark.nightly
@pytest.mark.skipif(not engine(), reason="there is no container engine")
def test_serves():
    """As an unprivileged user, on a file system that is read-only except for /tmp, it runs
    a node of Ray with the service."""
    docker("build", "--target", "ray", "--tag", IMAGE, ROOT)
    isolation = ["--read-only", "--tmpfs", "/tmp:size=2g", "--cap-drop", "ALL"]
    mount = ["--volume", f"{CONFIG}:/etc/ray.yaml:ro"]
    name = docker("run", "--detach", *isolation, *mount, IMAGE, *NODE).stdout.strip()

    def succeeds(*command):
        return docker("exec", name, *command, check=False).returncode == 0

    try:
        (container,) = json.loads(docker("inspect", name).stdout)
        assert int(container["Config"]["User"]) >= 10_000
        wait(lambda: succeeds("ray", "health-check"), "the node runs", 120)
        wait(
            lambda: succeeds("serve", "deploy", "/etc/ray.yaml"), "it is deployed", 120
        )
        wait(lambda: succeeds("python", "-c", READY), "it serves", 120)
    finally:
        docker("rm", "--force", name)
