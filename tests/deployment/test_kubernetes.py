"""The Kubernetes manifests: rendered like the golden files, valid by the schemas, and
consistent with the service's settings."""

import shutil
import subprocess
from pathlib import Path

import httpx
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
    return [document for document in yaml.safe_load_all(text) if document]


def golden(name: str) -> list[dict]:
    return documents((GOLDEN / f"kubernetes-{name}.yaml").read_text())


def of_kind(name: str, kind: str) -> dict:
    (document,) = [d for d in golden(name) if d["kind"] == kind]
    return document


def pod(name: str = "base") -> dict:
    return of_kind(name, "Deployment")["spec"]["template"]["spec"]


def settings() -> dict[str, str]:
    return of_kind("base", "ConfigMap")["data"]


@pytest.mark.parametrize("name", RENDERED)
def test_rendered(tmp_path, name):
    """Kustomize renders the golden files."""
    if shutil.which("kustomize") is None:
        pytest.skip("kustomize is not installed")
    shutil.copytree(FOLDER, tmp_path / "deployed")
    top = tmp_path / "top"
    top.mkdir()
    components = [f"../deployed/{part}" for part in RENDERED[name]]
    text = yaml.safe_dump({"resources": ["../deployed"], "components": components})
    (top / "kustomization.yaml").write_text(text)
    command = ["kustomize", "build", str(top)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert documents(done.stdout) == golden(name)


@pytest.mark.parametrize("name", RENDERED)
def test_valid(name):
    """Every document is valid by Kubernetes' schemas."""
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in golden(name):
        for version in VERSIONS:
            validate(document, version, strict=True)


def test_schemas_are_strict():
    """A misspelt field is an error."""
    module = pytest.importorskip("kubernetes_validate")
    wrong = of_kind("base", "Deployment")
    wrong["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(module.ValidationError):
        module.validate(wrong, VERSIONS[0], strict=True)


def test_settings_are_known():
    """The ConfigMap has only settings of the service."""
    names = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(settings()) <= names
    assert not pod()["enableServiceLinks"]  # they would set UNROLLED_PORT


def test_grace_period():
    """A pod gets the time that the service needs to drain and stop."""
    seconds = pod()["terminationGracePeriodSeconds"]
    drain = float(settings()["UNROLLED_DRAIN_SECONDS"])
    grace = float(settings()["UNROLLED_GRACE_SECONDS"])
    assert seconds > drain + grace + 5


@pytest.mark.parametrize("name", RENDERED)
def test_workers(name):
    """There are as many workers as the container requests cores, also after a patch."""
    (container,) = pod(name)["containers"]
    (runtime,) = documents(RUNTIME.read_text())
    for spec in (container, *runtime["spec"]["containers"]):
        (variable,) = [e for e in spec["env"] if e["name"] == f"{PREFIX}WORKERS"]
        source = {"resourceFieldRef": {"resource": "requests.cpu"}}
        assert variable["valueFrom"] == source
        assert spec["resources"]["requests"]["cpu"]
        assert "cpu" not in spec["resources"]["limits"]
    assert f"{PREFIX}WORKERS" not in settings()


@pytest.mark.parametrize("name", RENDERED)
def test_restricted(name):
    """The pods fit the `restricted` Pod Security Standard, and have a read-only root."""
    spec = pod(name)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"]


def test_probes(server):
    """Each probe uses a path that answers."""
    (container,) = pod()["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = container[probe]["httpGet"]["path"]
        assert httpx.get(server + path).status_code == 200


def test_no_egress():
    """The pods may open no connections."""
    policy = of_kind("base", "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


def test_autoscaler(server):
    """The autoscaler uses a metric that the service has."""
    metrics = of_kind("base", "HorizontalPodAutoscaler")["spec"]["metrics"]
    names = [m["pods"]["metric"]["name"] for m in metrics if m["type"] == "Pods"]
    exposition = httpx.get(server + "/metrics").text
    assert names
    assert all(f"\n{name}{{" in exposition for name in names)


def test_kserve():
    """The runtime and the service have the fields that KServe's client knows."""
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
    formats = [f["name"] for f in runtime["spec"]["supportedModelFormats"]]
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["runtime"] == runtime["metadata"]["name"]
