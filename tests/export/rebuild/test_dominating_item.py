"""One vector of huge norm is among the best candidates of nearly every user: such a version is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rebuild_samples import Shop

from re4.bundle.layout import CURRENT
from re4.bundle.publishing.current import read_current
from re4.common.errors import GateError, UsageError
from re4.exporting.rebuild.settings import Bounds


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def lengthen(shop: Shop, norm: float) -> None:
    """Give the vector of the least popular item this norm."""
    vectors_ND = shop.version.vectors_ND.copy()
    vectors_ND[-1] *= norm / np.linalg.norm(vectors_ND[-1])
    np.save(shop.vectors, vectors_ND)


def gate_of(report: dict[str, Any]) -> dict[str, Any]:
    return next(gate for gate in report["gates"] if gate["name"] == "item_share")


@pytest.mark.parametrize("norm", [1e4, 1e2])
def test_one_dominating_item_fails_one_gate_and_nothing_is_published(shop: Shop, norm: float) -> None:
    lengthen(shop, norm)
    error, report = shop.rebuild()
    assert isinstance(error, GateError)
    assert [gate["name"] for gate in report["gates"] if not gate["passed"]] == ["item_share"]
    assert "a vector of huge norm" in str(error)
    assert gate_of(report)["figure"] > 0.6
    assert shop.files() == {CURRENT, shop.first}


def test_a_first_rebuild_has_the_absolute_bound_alone(shop: Shop, tmp_path: Path) -> None:
    first, shop.bundles = shop.bundles / shop.first, tmp_path / "elsewhere"
    error, report = shop.rebuild("--encoder-from", first)
    assert error is None
    assert gate_of(report)["high"] == Bounds().max_item_share
    shop.bundles = tmp_path / "third"
    lengthen(shop, 1e4)
    error, report = shop.rebuild("--encoder-from", first)
    assert isinstance(error, GateError)
    assert not gate_of(report)["passed"]


def test_the_share_may_rise_a_little_above_the_live_versions(shop: Shop) -> None:
    error, report = shop.rebuild("--max-item-share-rise", 0.15)
    assert error is None
    gate = gate_of(report)
    assert 0 < gate["figure"] <= gate["high"] < Bounds().max_item_share
    lengthen(shop, 1e4)
    error, report = shop.rebuild("--max-item-share", 1)
    assert isinstance(error, GateError)
    assert gate_of(report)["high"] < 1


def test_the_gate_can_be_switched_off(shop: Shop) -> None:
    lengthen(shop, 1e4)
    error, report = shop.rebuild("--max-item-share", 1, "--max-item-share-rise", 1)
    assert error is None
    assert read_current(shop.bundles) == report["version"] != shop.first


@pytest.mark.parametrize("name", ["max_item_share", "max_item_share_rise"])
@pytest.mark.parametrize("value", [0, -0.1, 1.1, float("nan")])
def test_bounds_that_nothing_or_everything_keeps_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is"):
        Bounds(**{name: value})


def test_a_few_requests_are_not_judged(tmp_path: Path) -> None:
    shop = Shop(tmp_path, num_golden=38)
    error, report = shop.rebuild()
    assert error is None
    assert "item_share" not in {gate["name"] for gate in report["gates"]}
