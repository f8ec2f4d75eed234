"""The chart: helm lints it, and what it renders fits strict schemas of several versions of Kubernetes."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from re4.serving.processes.supervisor import _KILL_AFTER_S
from re4.serving.settings import ServerSettings
from re4.settings.fields import declared, option_name

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm"
PROGRAMS = ROOT / "build" / "helm" / "bin"
VERSIONS = ("1.30", "1.34", "1.37")
EVERYTHING = {
    "bundles": {"url": "s3://models/shop", "credentialsSecret": "re4-storage"},
    "server": {"tokensSecret": "re4-tokens", "extraArgs": ["--max-queue-ms=50"]},
    "rebuild": {"enabled": True},
    "valkey": {"enabled": True},
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


@pytest.mark.parametrize("values", [{}, EVERYTHING, PLAIN], ids=["defaults", "everything", "plain"])
def test_manifests_fit_strict_schemas(values: dict[str, Any], tmp_path: Path) -> None:
    path = rendered(values, tmp_path)
    for version in VERSIONS:
        done = validated(path, version)
        assert done.returncode == 0, done.stdout + done.stderr
    path.write_text(path.read_text().replace("terminationGracePeriodSeconds:", "terminationSeconds:"))
    assert validated(path, VERSIONS[0]).returncode != 0


def test_the_server_is_one_that_exists(tmp_path: Path) -> None:
    found = manifests(rendered(EVERYTHING, tmp_path))
    deployment = found["Deployment", "shop-serve"]["spec"]
    pod = deployment["template"]["spec"]
    serve, mirror = pod["containers"]
    used = {word.partition("=")[0] for word in serve["args"][2:]}
    assert used <= {option_name(name) for name in declared(ServerSettings)}
    assert "--histories=redis://shop-valkey:6379/0" in serve["args"]
    assert mirror["args"][:3] == ["re4", "mirror", "s3://models/shop"]
    pause = serve["lifecycle"]["preStop"]["sleep"]["seconds"]
    (grace,) = [word.partition("=")[2] for word in serve["args"] if word.startswith("--grace-s")]
    assert pod["terminationGracePeriodSeconds"] >= pause + float(grace) + _KILL_AFTER_S
    labels = deployment["template"]["metadata"]["labels"]
    for kind in ("PodDisruptionBudget", "Service", "NetworkPolicy"):
        spec = found[kind, "shop-serve"]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector.get("matchLabels", selector) == labels
    assert found["HorizontalPodAutoscaler", "shop-serve"]["spec"]["scaleTargetRef"]["name"] == "shop-serve"
    assert {each["topologyKey"] for each in pod["topologySpreadConstraints"]} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }
    (rebuild,) = found["CronJob", "shop-rebuild"]["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert "exec re4 push /srv/re4/bundles s3://models/shop --keep 3" in rebuild["command"][2]
    assert {"StatefulSet", "NetworkPolicy", "Service"} <= {
        kind for kind, name in found if name == "shop-valkey"
    }
