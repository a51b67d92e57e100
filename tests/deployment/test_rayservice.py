"""The RayService of deploy/: valid by the schemas of KubeRay, Kubernetes and Ray, and
consistent with deploy/ray.yaml and the image."""

import re
import tomllib

import jsonschema
import pytest
import yaml

from tests.support.ray import CONFIG, needs_ray
from tests.support.servers import ROOT

FILE = ROOT / "deploy" / "ray" / "rayservice.yaml"
SCHEMA = ROOT / "tests" / "deployment" / "golden" / "rayservice-schema.yaml"
VERSIONS = ("1.32", "1.34")  # of Kubernetes
SERVICE = yaml.safe_load(FILE.read_text(encoding="utf-8"))
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
PODS = [group["template"]["spec"] for group in GROUPS]
SERVED = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])

each_pod = pytest.mark.parametrize("pod", PODS, ids=["head", "worker"])


def strict(schema):
    """The schema with all other fields forbidden."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return closed | {name: strict(value) for name, value in schema.items()}


def errors(document):
    """The violations of KubeRay's schema in a document."""
    schema = strict(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))
    violations = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in violations]


def test_valid():
    """The document is valid, and has no unknown fields."""
    assert not errors(SERVICE)
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")


def test_schema_is_strict():
    """A misspelt field is an error, and so is a number in place of text."""
    wrong = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    cluster = wrong["spec"]["rayClusterConfig"]
    cluster["enableInTreeAutoscaler"] = True
    cluster["workerGroupSpecs"][0]["rayStartParams"]["num-cpus"] = 2
    assert len(errors(wrong)) == 2


@each_pod
@pytest.mark.parametrize("version", VERSIONS)
def test_pods_are_valid(pod, version):
    """The pods are valid by Kubernetes' schema."""
    validate = pytest.importorskip("kubernetes_validate").validate
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    validate(document | {"spec": pod}, version, strict=True)


def test_serve_config():
    """Its Serve configuration is deploy/ray.yaml."""
    assert yaml.safe_load(CONFIG.read_text(encoding="utf-8")) == SERVED


@pytest.mark.ray
@needs_ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray
def test_ray_schema():
    """The Serve configuration is valid by Ray's schema."""
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(SERVED)


def test_versions():
    """It names the image of this version, and the version of Ray in its lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = project["project"]["version"]
    for pod in PODS:
        for container in pod["containers"]:
            assert container["image"] == f"unrolled:{version}-ray"
    lock = (ROOT / "requirements" / "ray.lock").read_text(encoding="utf-8")
    assert re.findall(r"^ray==(\S+)", lock, re.MULTILINE) == [CLUSTER["rayVersion"]]


@each_pod
def test_restricted(pod):
    """The pods fit the `restricted` Pod Security Standard, and have a read-only root."""
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
    # Else variables named after KubeRay's Services would be unknown settings.
    assert pod["enableServiceLinks"] is False


@each_pod
def test_probes(pod):
    """The probes use ports of the pod or of Ray's agent; KubeRay's own probes need wget,
    which the image doesn't have."""
    (container,) = pod["containers"]
    ports = {port["name"] for port in container["ports"]} | {52365}
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports


def test_replicas_fit():
    """A worker node has the cores of one replica, there may be as many worker nodes as
    replicas, and the head node has no cores."""
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
