"""What is deployed to a cluster: rendered as the golden files say, valid by the schemas of
Kubernetes, and in step with the service's settings."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.support.servers import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
GOLDEN = Path(__file__).parent / "golden"
RENDERED = {"base": [], "volume": ["bundles-volume"], "init": ["bundles-init"]}
VERSIONS = ("1.32", "1.34")  # of Kubernetes
RUNTIME = ROOT / "deploy" / "kserve" / "runtime.yaml"
SERVICE = ROOT / "deploy" / "kserve" / "service.yaml"


def documents(text: str) -> list[dict]:
    return [one for one in yaml.safe_load_all(text) if one]


def golden(name: str) -> list[dict]:
    return documents((GOLDEN / f"kubernetes-{name}.yaml").read_text())


def of_kind(name: str, kind: str) -> dict:
    (found,) = [one for one in golden(name) if one["kind"] == kind]
    return found


def pod(name: str = "base") -> dict:
    return of_kind(name, "Deployment")["spec"]["template"]["spec"]


def settings() -> dict[str, str]:
    return of_kind("base", "ConfigMap")["data"]


@pytest.mark.parametrize("name", RENDERED)
def test_rendered(tmp_path, name):
    """Kustomize makes of the files what the golden ones are."""
    if shutil.which("kustomize") is None:
        pytest.skip("kustomize is not installed")
    shutil.copytree(FOLDER, tmp_path / "deployed")
    top = tmp_path / "top"
    top.mkdir()
    components = [f"../deployed/{one}" for one in RENDERED[name]]
    text = yaml.safe_dump({"resources": ["../deployed"], "components": components})
    (top / "kustomization.yaml").write_text(text)
    command = ["kustomize", "build", str(top)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert documents(done.stdout) == golden(name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RENDERED)
def test_valid(name, version):
    """Every document follows Kubernetes' own schema, strictly."""
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in golden(name):
        validate(document, version, strict=True)


def test_a_wrong_one_is_found():
    """The schemas are strict: a misspelt field is an error."""
    module = pytest.importorskip("kubernetes_validate")
    wrong = of_kind("base", "Deployment")
    wrong["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(module.ValidationError):
        module.validate(wrong, VERSIONS[0], strict=True)


def test_settings_are_known():
    """What is set is a setting of the service, and worth what is said."""
    names = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(settings()) <= names
    assert not pod()["enableServiceLinks"]  # else UNROLLED_PORT would be an address


def test_time_to_end():
    """A pod is left the time that the service may take to end."""
    seconds = pod()["terminationGracePeriodSeconds"]
    drain = float(settings()["UNROLLED_DRAIN_SECONDS"])
    grace = float(settings()["UNROLLED_GRACE_SECONDS"])
    assert seconds > drain + grace + 5


@pytest.mark.parametrize("name", RENDERED)
def test_workers(name):
    """As many as the cores that are asked for, whatever these are patched to; not as the
    node has. The settings say no other number."""
    (container,) = pod(name)["containers"]
    (runtime,) = documents(RUNTIME.read_text())
    for one in (container, *runtime["spec"]["containers"]):
        (variable,) = [e for e in one["env"] if e["name"] == f"{PREFIX}WORKERS"]
        source = {"resourceFieldRef": {"resource": "requests.cpu"}}
        assert variable["valueFrom"] == source
        assert one["resources"]["requests"]["cpu"]
        assert "cpu" not in one["resources"]["limits"]
    assert f"{PREFIX}WORKERS" not in settings()


@pytest.mark.parametrize("name", RENDERED)
def test_restricted(name):
    """The `restricted` Pod Security Standard, and a read-only root besides."""
    spec = pod(name)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"]


def test_probes(server):
    """Each asks for a path that answers."""
    import httpx

    (container,) = pod()["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = container[probe]["httpGet"]["path"]
        assert httpx.get(server + path).status_code == 200


def test_no_egress():
    policy = of_kind("base", "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


def test_metric_is_there(server):
    """The autoscaler looks at a metric that the service has."""
    import httpx

    metrics = of_kind("base", "HorizontalPodAutoscaler")["spec"]["metrics"]
    names = [one["pods"]["metric"]["name"] for one in metrics if one["type"] == "Pods"]
    exposition = httpx.get(server + "/metrics").text
    assert names
    assert all(f"\n{name}{{" in exposition for name in names)


def test_kserve():
    """The runtime and the service are what KServe's client knows them as."""
    kserve = pytest.importorskip("kserve")
    (runtime,), (service,) = (
        documents(path.read_text()) for path in (RUNTIME, SERVICE)
    )
    types = {
        kserve.V1alpha1ServingRuntimeSpec: runtime["spec"],
        kserve.V1beta1PredictorSpec: service["spec"]["predictor"],
        kserve.V1beta1ModelSpec: service["spec"]["predictor"]["model"],
    }
    for kind, spec in types.items():
        assert set(spec) <= set(kind.attribute_map.values())
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    formats = [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["runtime"] == runtime["metadata"]["name"]
