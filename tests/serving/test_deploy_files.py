"""The example manifests and the dashboard: they parse, and name nothing that this server does not have."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from re4.serving.api.service import SERVICE_NAME
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
