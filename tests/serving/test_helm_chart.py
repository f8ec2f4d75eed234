"""The chart: helm lints it, and what it renders fits strict schemas of several versions of Kubernetes."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from re4.cli import build_app
from re4.common.errors import GateError, UsageError
from re4.exporting.rebuild.settings import RebuildRequest
from re4.serving.api.service import SERVICE_NAME
from re4.serving.processes.supervisor import _KILL_AFTER_S
from re4.serving.settings import ServerSettings
from re4.settings.fields import declared, option_name
from re4.settings.sizes import parse_bytes

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm"
PROGRAMS = ROOT / "build" / "helm" / "bin"
VERSIONS = ("1.30", "1.34", "1.37")
EVERYTHING = {
    "bundles": {"url": "s3://models/shop", "credentialsSecret": "re4-storage"},
    "server": {"tokensSecret": "re4-tokens", "extraArgs": ["--max-queue-ms=50"]},
    "rebuild": {"enabled": True},
    "valkey": {"enabled": True},
    "milvus": {"enabled": True},
    "environmentSecret": "re4-passwords",
}
PLAIN = {"autoscaling": {"enabled": False}, "networkPolicy": {"enabled": False}, "server": {"tlsSecret": ""}}


def rendered(values: dict[str, Any], folder: Path) -> Path:
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    words = [PROGRAMS / "helm", "template", "shop", CHART, "--values", folder / "values.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "rendered.yaml").write_text(done.stdout)
    return folder / "rendered.yaml"


def manifests(path: Path) -> dict[tuple[str, str], Any]:
    found = [each for each in yaml.safe_load_all(path.read_text()) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def validated(path: Path, version: str) -> subprocess.CompletedProcess[str]:
    words = [PROGRAMS / "kubernetes-validate", "--strict", "-k", version, path]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_helm_finds_nothing_to_complain_about() -> None:
    done = subprocess.run(
        [PROGRAMS / "helm", "lint", "--strict", CHART], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "versions"),
    [({}, VERSIONS[-1:]), (EVERYTHING, VERSIONS), (PLAIN, VERSIONS[:1])],
    ids=["defaults", "everything", "plain"],
)
def test_manifests_fit_strict_schemas(
    values: dict[str, Any], versions: tuple[str, ...], tmp_path: Path
) -> None:
    path = rendered(values, tmp_path)
    for version in versions:
        done = validated(path, version)
        assert done.returncode == 0, done.stdout + done.stderr
    path.write_text(path.read_text().replace("terminationGracePeriodSeconds:", "terminationSeconds:"))
    assert validated(path, VERSIONS[0]).returncode != 0


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    return manifests(rendered(EVERYTHING, tmp_path_factory.mktemp("chart")))


def test_the_server_is_one_that_exists(everything: dict[tuple[str, str], Any]) -> None:
    deployment = everything["Deployment", "shop-serve"]["spec"]
    pod = deployment["template"]["spec"]
    (serve,) = pod["containers"]
    assert serve["args"][:2] == ["re4", "serve"]
    used = {word.partition("=")[0] for word in serve["args"][2:]}
    assert used <= {option_name(name) for name in declared(ServerSettings)}
    assert {"--bundles=s3://models/shop", "--histories=redis://shop-valkey:6379/0"} <= set(serve["args"])
    (size,) = [word.partition("=")[2] for word in serve["args"] if word.startswith("--bundles-cache-size")]
    (volume,) = [each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if each["name"] == "bundles"]
    assert parse_bytes(size, "") < parse_bytes(volume, "")
    assert [each["secretRef"]["name"] for each in serve["envFrom"]] == ["re4-storage", "re4-passwords"]
    ports = {port["name"]: port["containerPort"] for port in serve["ports"]}
    for option, name in (("address", "grpc"), ("health-address", "health"), ("metrics-address", "metrics")):
        assert f"--{option}=0.0.0.0:{ports[name]}" in serve["args"]
    for probe in ("startupProbe", "readinessProbe"):
        assert serve[probe]["grpc"] == {"port": ports["health"], "service": SERVICE_NAME}
    pause = serve["lifecycle"]["preStop"]["sleep"]["seconds"]
    (grace,) = [word.partition("=")[2] for word in serve["args"] if word.startswith("--grace-s")]
    assert pod["terminationGracePeriodSeconds"] >= pause + float(grace) + _KILL_AFTER_S


def test_the_parts_select_each_other(everything: dict[tuple[str, str], Any]) -> None:
    deployment = everything["Deployment", "shop-serve"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    for kind in ("PodDisruptionBudget", "Service", "NetworkPolicy"):
        spec = everything[kind, "shop-serve"]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector.get("matchLabels", selector) == labels
    scaler = everything["HorizontalPodAutoscaler", "shop-serve"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "shop-serve"
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == "re4_queue_p95_ms"
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }
    job = everything["CronJob", "shop-rebuild"]["spec"]["jobTemplate"]["spec"]
    for name, port in (("shop-valkey", "valkey"), ("shop-milvus", "milvus")):
        own = everything["StatefulSet", name]["spec"]
        assert own["selector"]["matchLabels"] == own["template"]["metadata"]["labels"]
        assert everything["Service", name]["spec"]["selector"] == own["selector"]["matchLabels"]
        policy = everything["NetworkPolicy", name]["spec"]
        assert policy["podSelector"] == own["selector"]
        (rule,) = policy["ingress"]
        assert rule["ports"] == [{"port": port}]
        allowed = rule["from"][0]["podSelector"]["matchLabels"]
        for pods in (labels, job["template"]["metadata"]["labels"]):
            assert allowed.items() <= pods.items()


def test_the_rebuild_is_one_that_exists(
    everything: dict[tuple[str, str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cronjob = everything["CronJob", "shop-rebuild"]["spec"]
    assert cronjob["concurrencyPolicy"] == "Forbid"
    job = cronjob["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    # A pod failure policy is refused with any other restart policy, and must name a container.
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == container["name"]
    assert rule["values"] == [UsageError.exit_code, GateError.exit_code]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert "--bundles=s3://models/shop" in container["args"]
    requests: list[Any] = []
    monkeypatch.setattr("re4.exporting.rebuild.job.rebuild", lambda request, *_: requests.append(request))
    monkeypatch.setattr(RebuildRequest, "check_inputs", lambda request: None)  # there is no run here
    program, *words = (word.replace("/srv/re4", str(tmp_path)) for word in container["args"])
    here = [word.replace("s3://models/shop", str(tmp_path / "bundles")) for word in words]
    done = CliRunner().invoke(build_app(here), here)
    assert (program, done.exit_code) == ("re4", 0), done.output
    assert requests[0].bundles == tmp_path / "bundles"


def test_without_object_storage_the_directory_is_a_claim(tmp_path: Path) -> None:
    pod = manifests(rendered(PLAIN, tmp_path))["Deployment", "shop-serve"]["spec"]["template"]["spec"]
    (serve,) = pod["containers"]
    assert "--bundles=/bundles" in serve["args"]
    assert "envFrom" not in serve
    assert {"name": "bundles", "mountPath": "/bundles", "readOnly": True} in serve["volumeMounts"]
    assert {"claimName": "re4-bundles", "readOnly": True} in [
        each.get("persistentVolumeClaim") for each in pod["volumes"]
    ]
