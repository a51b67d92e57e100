"""A Ray cluster, and the service on it with deploy/ray.yaml."""

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
SECONDS = 120  # longest wait for anything of Ray
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: make ray",
)


@dataclass(frozen=True)
class Ray:
    """A cluster, which ends with its process."""

    dashboard: str
    address: str
    environment: dict[str, str]

    def serve(self, *arguments) -> str:
        """Run a command of `serve`; returns its output."""
        result = subprocess.run(
            [SERVE, *arguments, "--address", self.dashboard],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def application(self) -> dict:
        """The status of the service, by Ray."""
        url = f"{self.dashboard}/api/serve/applications/"
        applications = httpx.get(url, timeout=30).json()["applications"]
        return applications.get("unrolled", {"status": "none"})

    def redeploy(self, folder: Path, *, autoscaling) -> None:
        """Change the autoscaling of the service of `deployed`."""
        file = folder / "ray.yaml"
        config = yaml.safe_load(file.read_text())
        (deployment,) = config["applications"][0]["deployments"]
        deployment["autoscaling_config"] |= autoscaling
        file.write_text(yaml.safe_dump(config))
        self.serve("deploy", str(file))

    def replicas(self) -> list[dict]:
        """The running replicas, with process and actor IDs."""
        deployments = self.application().get("deployments", {})
        replicas = deployments["unrolled"]["replicas"] if deployments else []
        return [replica for replica in replicas if replica["state"] == "RUNNING"]


@contextmanager
def cluster(folder: Path, *, nodes: int = 2, cores: int = 2):
    """Run a cluster until the block ends."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    # As a module: beside the script this file would shadow the package ray.
    command = [sys.executable, "-m", "tests.support.ray_cluster", nodes, cores]
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
    """Deploy the service with deploy/ray.yaml and one core per replica, until the block
    ends; yields its address."""
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
        application = ray.application()
        assert "FAILED" not in application["status"], application
        return application["status"] == "RUNNING"

    wait(runs, "Ray has deployed it", SECONDS)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.serve("shutdown", "-y")


@contextmanager
def behind(folder: Path, **settings):
    """Run the service on a cluster of its own; yields the address of Ray's proxy."""
    texts = {name: str(value) for name, value in settings.items()}
    with cluster(folder) as ray, deployed(ray, folder, **texts) as url:
        yield url
