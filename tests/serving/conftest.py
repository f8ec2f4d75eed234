"""Servers that many tests share: starting one takes a second."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from milvus_process import MILVUS_SERVER
from running_server import RunningServer
from small_bundles import SmallVersion, load

from re4.serving.versions.snapshot import Snapshot

collect_ignore = []
if not (Path(__file__).parents[2] / "build/helm/bin/helm").exists():
    collect_ignore.append("test_helm_chart.py")
if MILVUS_SERVER is None:
    collect_ignore.append("test_milvus.py")


@pytest.fixture(scope="session")
def small_version() -> SmallVersion:
    """What the shared server serves: string ids, attributes."""
    return SmallVersion(has_attributes=True)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, small_version: SmallVersion) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    small_version.publish(folder)
    return folder


@pytest.fixture(scope="session")
def server(bundles: Path, transport: str) -> Iterator[RunningServer]:
    """One worker, string ids, everything at its default."""
    with RunningServer(bundles) as running:
        yield running


@pytest.fixture(scope="session")
def int_version() -> SmallVersion:
    return SmallVersion(seed=5, id_kind="int")


@pytest.fixture(scope="session")
def int_server(
    tmp_path_factory: pytest.TempPathFactory, int_version: SmallVersion, transport: str
) -> Iterator[RunningServer]:
    """Two workers, integer ids, the popular fallback, no reflection."""
    folder = tmp_path_factory.mktemp("int-bundles")
    int_version.publish(folder)
    options = ("--num-processes", "2", "--fallback", "popular", "--no-reflection")
    with RunningServer(folder, *options) as running:
        yield running


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory, small_version: SmallVersion) -> Snapshot:
    return load(small_version, tmp_path_factory.mktemp("loaded"))
