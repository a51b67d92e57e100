"""The isolation of the service by the images and the compose file."""

import json
import re
import tomllib

import pytest
import yaml

from model.bundle import folders
from service.settings import Settings
from tests.support.servers import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
BUILT = {name: spec for name, spec in SERVICES.items() if "build" in spec}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# With a tag other than `latest`, or a digest.
IMAGE = re.compile(r"[\w./-]+(:(?!latest)[\w.-]+|@sha256:[0-9a-f]{64})")

each = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_built = pytest.mark.parametrize("service", BUILT.values(), ids=BUILT)


def plain(text):
    """A value when no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


def instructions():
    """The instructions of each stage of the Dockerfile: pairs of keyword and arguments."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    stages, current = {}, []
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = stages[name] = [("FROM", base)]
        elif word:
            current.append((word, rest.strip()))
    return stages


STAGES = instructions()


def lineage(stage):
    """A stage's instructions, after those of the stages that it builds on."""
    own = STAGES[stage]
    base = own[0][1]
    return (lineage(base) if base in STAGES else []) + own


def last(stage, word):
    """The arguments of the last instruction with this keyword."""
    return [rest for keyword, rest in lineage(stage) if keyword == word][-1]


def seconds(text):
    (number,) = re.fullmatch(r"(\d+)s", text).groups()
    return int(number)


@each_built
def test_user(service):
    """The service runs as an unprivileged numeric user."""
    assert "user" not in service
    assert int(last(service["build"]["target"], "USER")) >= 10_000


def test_user_of_proxy():
    """So does the proxy."""
    assert re.fullmatch(r"\d{5}:\d{5}", SERVICES["proxy"]["user"])


@each
def test_isolation(service):
    """A container has no capabilities and can't gain any, can write only to a /tmp without
    executables, and can't reach the host."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (mounted,) = service["tmpfs"]
    path, _, options = mounted.partition(":")
    assert path == "/tmp"
    assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))
    assert "size=" in options
    forbidden = {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode"}
    assert not forbidden & set(service)
    assert "docker.sock" not in json.dumps(service)
    for volume in service.get("volumes", []):
        assert volume.endswith(":ro")


@each_built
def test_own_bundles(service):
    """`TRAINED` names a folder of bundles; without it an empty volume takes its place."""
    folder = f"/app/{folders.TRAINED.name}"
    assert service["volumes"] == [f"${{TRAINED:-no-bundles}}:{folder}:ro"]
    assert "no-bundles" in COMPOSE["volumes"]


@each
def test_limits(service):
    """Memory, swap, CPUs, processes, open files and logs are limited."""
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["memswap_limit"] == service["mem_limit"]
    assert float(plain(service["cpus"])) > 0
    assert service["pids_limit"] > 0
    # Each connection is an open file.
    assert service["ulimits"]["nofile"] > 2 * Settings().max_streams
    assert "max-size" in service["logging"]["options"]


@each
def test_grace_period(service):
    """A container gets the time that the service needs to drain and stop."""
    period = seconds(service["stop_grace_period"])
    assert period > Settings().drain_seconds + Settings().grace_seconds
    assert service["restart"] == "unless-stopped"


@each
def test_health_check(service):
    """The health check needs no shell."""
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@each
def test_image_names(service):
    """No image has the tag `latest`, and each can be pinned to a digest."""
    assert IMAGE.fullmatch(plain(service["image"]))
    if "build" in service:
        arguments = service["build"]["args"]
        assert IMAGE.fullmatch(plain(arguments["PYTHON_IMAGE"]))
        assert arguments["PYTHON_IMAGE"].startswith("${PYTHON_IMAGE:-")
    else:
        assert service["image"].startswith("${NGINX_IMAGE:-")


def test_version():
    """The images' tags and their label have the project's version."""
    version = PROJECT["project"]["version"]
    for service in BUILT.values():
        assert re.fullmatch(rf"unrolled:{version}(-\w+)?", service["image"])
    assert f'image.version="{version}"' in last("slim", "LABEL")


def test_base_image():
    """The base image is an argument, with the same default in the compose file."""
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert IMAGE.fullmatch(default)
    outside = {own[0][1] for own in STAGES.values()} - set(STAGES)
    assert outside == {"${PYTHON_IMAGE}"}
    for service in BUILT.values():
        assert plain(service["build"]["args"]["PYTHON_IMAGE"]) == default


@pytest.mark.parametrize("stage", ["slim", "full"])
def test_the_image(stage):
    """The image starts without a shell, and has a health check."""
    assert json.loads(last(stage, "ENTRYPOINT")) == ["python", "-m", "unrolled"]
    assert json.loads(last(stage, "CMD")) == ["serve"]
    check = last(stage, "HEALTHCHECK").partition(" CMD ")[2]
    assert json.loads(check) == SERVICES["unrolled"]["healthcheck"]["test"][1:]
    assert_clean(stage)


def test_the_image_for_ray():
    """So does the image for Ray, without usage statistics."""
    assert json.loads(last("ray", "ENTRYPOINT")) == ["ray"]
    assert json.loads(last("ray", "CMD")) == ["start", "--head", "--block"]
    check = last("ray", "HEALTHCHECK").partition(" CMD ")[2]
    assert json.loads(check) == ["ray", "health-check"]
    assert int(last("ray", "USER")) >= 10_000
    assert "RAY_USAGE_STATS_ENABLED=0" in last("ray", "ENV")
    assert_clean("ray")


def test_same_files():
    """All images have the same files, and `slim` is the default target."""
    copied = [
        [
            rest
            for word, rest in STAGES[stage]
            if word == "COPY" and "--from" not in rest
        ]
        for stage in ("slim", "full", "ray")
    ]
    assert copied[0] == copied[1] == copied[2]
    assert list(STAGES)[-1] == SERVICES["unrolled"]["build"]["target"] == "slim"


def assert_clean(stage):
    """Assert that an image has labels, and copies only the environment from the stage
    with pip."""
    labels = set(
        re.findall(r"org\.opencontainers\.image\.([\w.]+)=", last(stage, "LABEL"))
    )
    assert {"title", "description", "version", "licenses", "revision"} <= labels
    for word, rest in lineage(stage):
        assert word != "ADD"
        assert word != "RUN" or rest.startswith("useradd ")
    every = " ".join(rest for word, rest in lineage(stage) if word == "ENV")
    assert "UNROLLED_HOST=0.0.0.0" in every


def test_installs_are_hash_locked():
    """pip installs only wheels with hashes."""
    installs = [
        rest
        for own in STAGES.values()
        for word, rest in own
        if word == "RUN" and "install" in rest
    ]
    assert len(installs) == 3
    for command in installs:
        assert "--require-hashes" in command
        assert "--only-binary :all:" in command
        assert not re.search(r"apt|apk|curl|wget|https?:", command)


def test_build_context():
    """The build context has only the files of the images: no secrets, no tests."""
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    packages = {"unrolled", "model", "service"}
    assert allowed == {"requirements/*.lock", *packages, "bundles"}
