"""What KubeRay is told: valid by its schema, by Kubernetes' and by Ray's, and in step with
deploy/ray.yaml and the image."""

import re
import tomllib

import jsonschema
import pytest
import yaml

from tests.support.ray import CONFIG, needs_ray
from tests.support.servers import ROOT

PLACE = ROOT / "deploy" / "ray" / "rayservice.yaml"
SCHEMA = ROOT / "tests" / "deployment" / "golden" / "rayservice-schema.yaml"
VERSIONS = ("1.32", "1.34")  # of Kubernetes
SERVICE = yaml.safe_load(PLACE.read_text(encoding="utf-8"))
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
PODS = [group["template"]["spec"] for group in GROUPS]
SERVED = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])

each_pod = pytest.mark.parametrize("pod", PODS, ids=["head", "worker"])


def strict(schema):
    """A schema that refuses fields which it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return closed | {name: strict(one) for name, one in schema.items()}


def wrongs(document):
    """What KubeRay's schema says against a document."""
    schema = strict(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def test_valid():
    """It has the fields that a RayService may have, strictly."""
    assert not wrongs(SERVICE)
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")


def test_wrong_ones_are_found():
    """A misspelt field is an error, and so is a number where KubeRay takes text."""
    wrong = yaml.safe_load(PLACE.read_text(encoding="utf-8"))
    cluster = wrong["spec"]["rayClusterConfig"]
    cluster["enableInTreeAutoscaler"] = True
    cluster["workerGroupSpecs"][0]["rayStartParams"]["num-cpus"] = 2
    assert len(wrongs(wrong)) == 2


@each_pod
@pytest.mark.parametrize("version", VERSIONS)
def test_pods_are_valid(pod, version):
    """The pods are what Kubernetes takes, strictly."""
    validate = pytest.importorskip("kubernetes_validate").validate
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}
    validate(made, version, strict=True)


def test_serves_as_elsewhere():
    """It deploys what `serve deploy deploy/ray.yaml` does."""
    assert yaml.safe_load(CONFIG.read_text(encoding="utf-8")) == SERVED


@pytest.mark.ray
@needs_ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own
def test_ray_takes_it():
    """It is a configuration by Ray's own schema."""
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(SERVED)


def test_versions():
    """The image is that of this version, and Ray that of its lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = project["project"]["version"]
    for pod in PODS:
        for container in pod["containers"]:
            assert container["image"] == f"unrolled:{version}-ray"
    lock = (ROOT / "requirements" / "ray.lock").read_text(encoding="utf-8")
    assert re.findall(r"^ray==(\S+)", lock, re.MULTILINE) == [CLUSTER["rayVersion"]]


@each_pod
def test_restricted(pod):
    """The `restricted` Pod Security Standard, and a read-only root besides."""
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"]
    autoscaler = CLUSTER["autoscalerOptions"]["securityContext"]
    assert autoscaler["allowPrivilegeEscalation"] is False
    assert autoscaler["capabilities"] == {"drop": ["ALL"]}
    # KubeRay's Services begin with the name: their variables would be unknown settings.
    assert pod["enableServiceLinks"] is False


@each_pod
def test_probes(pod):
    """The image has no wget, which KubeRay's own probes need: each pod has its own, of
    ports that it has, or of Ray's agent."""
    (container,) = pod["containers"]
    ports = {one["name"] for one in container["ports"]} | {52365}
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports


def test_replicas_fit():
    """A worker has the cores of a replica, as many of them may come as replicas, and the
    head has none."""
    (application,) = SERVED["applications"]
    (deployment,) = application["deployments"]
    head, worker = GROUPS
    cores = str(deployment["ray_actor_options"]["num_cpus"])
    (container,) = PODS[1]["containers"]
    assert container["resources"]["requests"]["cpu"] == cores
    assert worker["rayStartParams"]["num-cpus"] == cores
    assert head["rayStartParams"]["num-cpus"] == "0"
    scaling = deployment["autoscaling_config"]
    assert worker["minReplicas"] == scaling["min_replicas"]
    assert worker["maxReplicas"] == scaling["max_replicas"]
    assert CLUSTER["enableInTreeAutoscaling"]
