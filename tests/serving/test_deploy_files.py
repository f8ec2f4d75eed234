"""The example manifests and the dashboard: they parse, and name nothing that this server does not have."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from re4.serving.api.service import SERVICE_NAME
from re4.serving.processes.supervisor import _KILL_AFTER_S
from re4.serving.settings import ServerSettings
from re4.settings.fields import declared, option_name

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
METRICS = (Path(__file__).parents[2] / "serving" / "observability" / "metrics.py").read_text()


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "serve.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def container(manifests: dict[str, Any]) -> dict[str, Any]:
    (found,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def test_every_option_is_one_of_re4_serve(container: dict[str, Any]) -> None:
    assert container["args"][:2] == ["re4", "serve"]
    used = {word.partition("=")[0] for word in container["args"][2:]}
    assert used <= {option_name(name) for name in declared(ServerSettings)}


def test_probes_and_ports_are_those_of_the_options(container: dict[str, Any]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for option, name in (("address", "grpc"), ("health-address", "health"), ("metrics-address", "metrics")):
        assert f"--{option}=0.0.0.0:{ports[name]}" in container["args"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["grpc"] == {"port": ports["health"], "service": SERVICE_NAME}


def test_a_stop_has_the_time_that_it_may_take(manifests: dict[str, Any], container: dict[str, Any]) -> None:
    (grace,) = [word.partition("=")[2] for word in container["args"] if word.startswith("--grace-s")]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    allowed = manifests["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert allowed > pause + float(grace)


def test_the_parts_select_each_other(manifests: dict[str, Any]) -> None:
    deployment = manifests["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["minAvailable"] < deployment["replicas"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    claims = [volume.get("persistentVolumeClaim", {}) for volume in deployment["template"]["spec"]["volumes"]]
    assert manifests["PersistentVolumeClaim"]["metadata"]["name"] in {
        claim.get("claimName") for claim in claims
    }


@pytest.fixture(scope="module")
def unit() -> dict[str, str]:
    """The last value of each entry of the systemd unit."""
    lines = (DEPLOY / "systemd" / "re4-serve.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_stops_and_reloads_a_server_as_it_is_documented(unit: dict[str, str]) -> None:
    words = unit["ExecStart"].split()[1:]
    assert words[:2] == ["serve", "--config"]
    assert (unit["KillMode"], unit["KillSignal"]) == ("mixed", "SIGTERM")
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert float(unit["TimeoutStopSec"]) > ServerSettings().grace_s + _KILL_AFTER_S


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to ask")
def test_systemd_accepts_the_unit(unit: dict[str, str], tmp_path: Path) -> None:
    content = (DEPLOY / "systemd" / "re4-serve.service").read_text()
    copy = tmp_path / "re4-serve.service"
    copy.write_text(content.replace(unit["ExecStart"].split()[0], "/bin/true").replace("User=re4\n", ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def metrics_of(expression: str) -> set[str]:
    """Names of the metrics in a query, without what Prometheus adds to them."""
    names = re.findall(r"\bre4_[a-z_]+", expression)
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}


def test_every_metric_of_the_dashboard_exists_and_every_metric_is_on_it() -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    used = set().union(*map(metrics_of, queries))
    assert used == set(re.findall(r'"(re4_[a-z_]+)"', METRICS))


def test_panels_have_numbers_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["targets"] for panel in panels)
