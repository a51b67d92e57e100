"""What the image and the compose file promise about how the service is shut in."""

import json
import re
import tomllib

import pytest
import yaml

from service.settings import Settings
from tests.support.servers import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
BUILT = {name: one for name, one in SERVICES.items() if "build" in one}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# A tag or a digest; never whatever is newest.
IMAGE = re.compile(r"[\w./-]+(:(?!latest)[\w.-]+|@sha256:[0-9a-f]{64})")

each = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_built = pytest.mark.parametrize("service", BUILT.values(), ids=BUILT)


def plain(text):
    """A value as it is when no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


def instructions():
    """The Dockerfile's instructions by stage: its name, and pairs of word and rest."""
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
    """A stage's instructions after those of the stages that it is built on."""
    own = STAGES[stage]
    base = own[0][1]
    return (lineage(base) if base in STAGES else []) + own


def told(stage, word):
    """What the last instruction of that kind says."""
    return [rest for one, rest in lineage(stage) if one == word][-1]


def seconds(text):
    (number,) = re.fullmatch(r"(\d+)s", text).groups()
    return int(number)


@each_built
def test_nobody_in_particular(service):
    """It runs as a numeric user without rights: nothing has to look its name up."""
    assert "user" not in service
    assert int(told(service["build"]["target"], "USER")) >= 10_000


def test_nobody_before_nginx():
    """So does the proxy."""
    assert re.fullmatch(r"\d{5}:\d{5}", SERVICES["proxy"]["user"])


@each
def test_shut_in(service):
    """No capabilities, no new ones, nothing to write to but a /tmp that runs nothing,
    and no way to the host."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (mounted,) = service["tmpfs"]
    path, _, options = mounted.partition(":")
    assert path == "/tmp"
    assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))
    assert "size=" in options
    open_doors = {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode"}
    assert not open_doors & set(service)
    assert "docker.sock" not in json.dumps(service)
    for volume in service.get("volumes", []):
        assert volume.endswith(":ro")


@each
def test_bounded(service):
    """Memory (and swap), processors, processes, files and logs have bounds."""
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["memswap_limit"] == service["mem_limit"]
    assert float(plain(service["cpus"])) > 0
    assert service["pids_limit"] > 0
    # Each waiting connection is one.
    assert service["ulimits"]["nofile"] > 2 * Settings().max_streams
    assert "max-size" in service["logging"]["options"]


@each
def test_ends_in_peace(service):
    """It is killed only after it had the time to drain and to answer."""
    given = seconds(service["stop_grace_period"])
    assert given > Settings().drain_seconds + Settings().grace_seconds
    assert service["restart"] == "unless-stopped"


@each
def test_health_is_asked(service):
    """The health check is a program with arguments: no shell is needed."""
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@each
def test_images_are_named(service):
    """No image is whatever is newest; one by its digest can be asked for."""
    assert IMAGE.fullmatch(plain(service["image"]))
    if "build" in service:
        arguments = service["build"]["args"]
        assert IMAGE.fullmatch(plain(arguments["PYTHON_IMAGE"]))
        assert arguments["PYTHON_IMAGE"].startswith("${PYTHON_IMAGE:-")
    else:
        assert service["image"].startswith("${NGINX_IMAGE:-")


def test_the_tags_are_of_this_version():
    """The images' tags and label tell the project's version."""
    version = PROJECT["project"]["version"]
    for service in BUILT.values():
        assert re.fullmatch(rf"unrolled:{version}(-\w+)?", service["image"])
    assert f'image.version="{version}"' in told("slim", "LABEL")


def test_the_base_is_an_argument():
    """The Dockerfile's base can be given by its digest, and is the compose file's."""
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert IMAGE.fullmatch(default)
    outside = {own[0][1] for own in STAGES.values()} - set(STAGES)
    assert outside == {"${PYTHON_IMAGE}"}
    for service in BUILT.values():
        assert plain(service["build"]["args"]["PYTHON_IMAGE"]) == default


@pytest.mark.parametrize("stage", ["slim", "full"])
def test_the_image(stage):
    """It starts without a shell, and asks for its own health."""
    assert json.loads(told(stage, "ENTRYPOINT")) == ["python", "-m", "unrolled"]
    assert json.loads(told(stage, "CMD")) == ["serve"]
    check = told(stage, "HEALTHCHECK").partition(" CMD ")[2]
    assert json.loads(check) == SERVICES["unrolled"]["healthcheck"]["test"][1:]
    assert_clean(stage)


def test_the_image_for_ray():
    """A node of Ray likewise, which tells Ray's makers nothing."""
    assert json.loads(told("ray", "ENTRYPOINT")) == ["ray"]
    assert json.loads(told("ray", "CMD")) == ["start", "--head", "--block"]
    check = told("ray", "HEALTHCHECK").partition(" CMD ")[2]
    assert json.loads(check) == ["ray", "health-check"]
    assert int(told("ray", "USER")) >= 10_000
    assert "RAY_USAGE_STATS_ENABLED=0" in told("ray", "ENV")
    assert_clean("ray")


def test_all_images_have_the_same_files():
    """What is copied from here is the same in all of them; the last is what a build
    without a target makes."""
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
    """That an image tells what it is, and takes from the stage that had pip only what
    the lock gave."""
    labels = set(
        re.findall(r"org\.opencontainers\.image\.([\w.]+)=", told(stage, "LABEL"))
    )
    assert {"title", "description", "version", "licenses", "revision"} <= labels
    for word, rest in lineage(stage):
        assert word != "ADD"
        assert word != "RUN" or rest.startswith("useradd ")
    every = " ".join(rest for word, rest in lineage(stage) if word == "ENV")
    assert "UNROLLED_HOST=0.0.0.0" in every


def test_installs_are_hash_locked():
    """Whatever pip installs in an image has a hash, and nothing is built there."""
    installs = [
        rest
        for own in STAGES.values()
        for word, rest in own
        if word == "RUN" and "install" in rest
    ]
    assert len(installs) == 3
    for one in installs:
        assert "--require-hashes" in one
        assert "--only-binary :all:" in one
        assert not re.search(r"apt|apk|curl|wget|https?:", one)


def test_the_context_holds_no_more():
    """Only what the images take in is sent to be built: no secrets, no tests."""
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    packages = {"unrolled", "model", "service"}
    assert allowed == {"requirements/*.lock", *packages, "bundles"}
