"""A real Ray cluster, and the service on it as deploy/ray.yaml has it."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.processes import free_port
from tests.support.servers import ROOT, wait

CONFIG = ROOT / "deploy" / "ray.yaml"
SERVE = Path(sys.executable).with_name("serve")
SECONDS = 120  # nothing of Ray may take longer
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: make ray",
)


@dataclass(frozen=True)
class Ray:
    """A cluster; all of it ends with its process."""

    dashboard: str
    address: str
    environment: dict[str, str]

    def serve(self, *arguments) -> str:
        """What the command `serve` prints."""
        made = subprocess.run(
            [SERVE, *arguments, "--address", self.dashboard],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        return made.stdout

    def application(self) -> dict:
        """What Ray says of the service."""
        told = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=30)
        return told.json()["applications"].get("unrolled", {"status": "none"})

    def redeploy(self, folder: Path, *, autoscaling) -> None:
        """Have the service of `deployed` scaled otherwise."""
        file = folder / "ray.yaml"
        config = yaml.safe_load(file.read_text())
        (deployment,) = config["applications"][0]["deployments"]
        deployment["autoscaling_config"] |= autoscaling
        file.write_text(yaml.safe_dump(config))
        self.serve("deploy", str(file))

    def replicas(self) -> list[dict]:
        """Those that run, with their process numbers and actors."""
        deployments = self.application().get("deployments", {})
        every = deployments["unrolled"]["replicas"] if deployments else []
        return [one for one in every if one["state"] == "RUNNING"]


@contextmanager
def cluster(folder: Path, *, nodes: int = 2, cores: int = 2):
    """So many nodes of so many cores each, until the block ends."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        sys.executable,
        ROOT / "tests" / "support" / "ray_cluster.py",
        nodes,
        cores,
    ]
    output = folder / "cluster.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            [*map(str, command), str(free_port())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd=folder,
            text=True,
        )
        try:
            line = process.stdout.readline()
            assert line, output.read_text()
            while not line.startswith("{"):
                line = process.stdout.readline()
            yield Ray(**json.loads(line), environment=environment)
        finally:
            process.stdin.close()
            process.wait(SECONDS)
            process.stdout.close()


@contextmanager
def deployed(ray: Ray, folder: Path, *, autoscaling=None, **settings):
    """The service as deploy/ray.yaml has it, on a core for each replica; its
    address."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    application["args"] |= settings
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"]["num_cpus"] = 1
    deployment["autoscaling_config"] |= autoscaling or {}
    file = folder / "ray.yaml"
    file.write_text(yaml.safe_dump(config))
    ray.serve("deploy", str(file))

    def runs():
        told = ray.application()
        assert "FAILED" not in told["status"], told
        return told["status"] == "RUNNING"

    wait(runs, "Ray has deployed it", SECONDS)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.serve("shutdown", "-y")


@contextmanager
def behind(folder: Path, **settings):
    """The service on a cluster of its own; the address of Ray's proxy."""
    texts = {name: str(value) for name, value in settings.items()}
    with cluster(folder) as ray, deployed(ray, folder, **texts) as url:
        yield url
