"""The share of the catalogue that held-out users get: its counts, its reports, and the gates on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rebuild_samples import NUM_ITEMS, Shop

from re4.bundle.publishing.current import live_version
from re4.bundle.verify import verify_version
from re4.common.errors import GateError, UsageError
from re4.exporting import api
from re4.exporting.rebuild.coverage import Coverage
from re4.exporting.rebuild.settings import RebuildRequest


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@given(
    lists=st.lists(st.lists(st.integers(-1, 39), min_size=4, max_size=4), min_size=1, max_size=12),
    num_cold=st.integers(0, 40),
)
def test_the_shares_are_counts(lists: list[list[int]], num_cold: int) -> None:
    cold = set(range(40 - num_cold, 40))
    found = Coverage.of(np.array(lists), 40, np.array(sorted(cold), np.int64))
    listed = {row for each in lists for row in each if row >= 0}
    trained = [row for row in range(40) if row not in cold]
    assert found.catalogue == pytest.approx(len(listed) / 40)
    assert found.trained == pytest.approx(len(listed & set(trained)) / len(trained) if trained else 0)
    assert found.new == (pytest.approx(len(listed & cold) / len(cold)) if cold else None)
    places = [row for each in lists for row in each if row >= 0]
    assert found.new_share == pytest.approx(np.mean([row in cold for row in places]) if places else 0)
    tenths = np.array_split(trained, min(10, max(1, len(trained))))
    expected = [len(listed & set(tenth.tolist())) / max(1, len(tenth)) for tenth in tenths]
    assert found.by_popularity == pytest.approx(expected)
    assert found.num_requests == len(lists)
    assert json.loads(json.dumps(found.to_json()))["catalogue"] == pytest.approx(found.catalogue, abs=1e-4)


def gates(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {gate["name"]: gate for gate in report["gates"]}


def test_coverage_is_in_report_manifest_and_metrics(shop: Shop, tmp_path: Path) -> None:
    error, report = shop.rebuild("--metrics-file", tmp_path / "rebuild.prom")
    assert error is None
    details = gates(report)["coverage"]["details"]
    assert details["catalogue"] == pytest.approx(gates(report)["coverage"]["figure"], abs=1e-4)
    assert len(details["by_popularity"]) == 10
    assert details["new"] is None
    assert verify_version(live_version(shop.bundles)).lineage["coverage"] == details
    metrics = (tmp_path / "rebuild.prom").read_text()
    assert f're4_rebuild_coverage{{items="tenth_10"}} {details["by_popularity"][9]}' in metrics


def test_a_collapse_fails_the_gate(shop: Shop) -> None:
    vectors = shop.version.vectors_ND.copy()
    vectors[40:] *= 0.01
    np.save(shop.vectors, vectors)
    error, report = shop.rebuild()
    assert isinstance(error, GateError)
    assert not gates(report)["coverage"]["passed"]
    assert gates(report)["coverage"]["figure"] < 0.4
    assert "gate coverage: share of the catalogue" in str(error)


def test_new_items_in_nobodys_list_fail_the_gate(shop: Shop) -> None:
    new = [f"new-{number}" for number in range(150)]
    colours = [["red", "blue"][number % 2] for number in range(NUM_ITEMS + len(new))]
    catalogue = shop.write_catalogue([*shop.version.ids, *new], colour=colours)
    options = ("--catalogue", catalogue, "--max-items-ratio", 2, "--min-overlap", 0, "--min-hubness-ratio", 0)
    error, report = shop.rebuild(*options, "--cold-share", 0)
    assert isinstance(error, GateError)
    assert [name for name, gate in gates(report).items() if not gate["passed"]] == ["new_items"]
    assert gates(report)["new_items"]["figure"] == 0
    error, report = shop.rebuild(*options)
    assert error is None
    assert gates(report)["new_items"]["figure"] > 0.02
    assert 0.01 < gates(report)["coverage"]["details"]["new_share"] < 0.3
    assert report["cold_start"]["share"] <= 0.12


def test_earlier_names_of_options_are_accepted(shop: Shop) -> None:
    error, report = shop.rebuild("--min-reachable", 1, "--min-uncrowded", 0.25)
    assert error is None
    assert gates(report)["self_recall"]["low"] == 1
    found = api._settings(
        RebuildRequest,
        {"vectors": "v.parquet", "min_reachable": 0.5, "min_uncrowded": 0.25},
        bundles=shop.bundles,
    )
    assert (found.bounds.min_self_recall, found.bounds.min_hubness_ratio) == (0.5, 0.25)
    with pytest.raises(UsageError, match="min_reachabel"):
        api._settings(RebuildRequest, {"vectors": "v.parquet", "min_reachabel": 0.5}, bundles=shop.bundles)
