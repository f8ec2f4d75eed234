"""The systemd unit and the dashboard: they parse, and name nothing that this server does not have."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from re4.serving.processes.supervisor import _KILL_AFTER_S
from re4.serving.settings import ServerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
METRICS = (Path(__file__).parents[2] / "serving" / "observability" / "metrics.py").read_text()


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
