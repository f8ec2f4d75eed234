"""A second version that would not fit is refused before it is loaded, and seen to be."""

from pathlib import Path

import pytest
from running_server import RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.manifest import IndexInfo, Manifest
from re4.bundle.verify import read_manifest
from re4.common.errors import BundleError
from re4.serving.versions import memory_check
from re4.serving.versions.memory_check import bytes_needed, require_memory

MIB = 1 << 20


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(tmp_path / SmallVersion().publish(tmp_path))


def with_index(manifest: Manifest, factory: str | None, index_bytes: int) -> Manifest:
    files = tuple(
        entry.model_copy(update={"num_bytes": index_bytes}) if entry.name == "items.faiss" else entry
        for entry in manifest.files
    )
    kind = "flat" if factory is None else "ivf"
    return manifest.model_copy(update={"index": IndexInfo(kind=kind, factory=factory), "files": files})


@pytest.mark.parametrize("factory", [None, "IVF2048,Flat", "IVF2048,SQ8", "IVF2048,RaBitQ"])
def test_mapped_indexes_cost_nothing(manifest: Manifest, factory: str | None) -> None:
    mapped = bytes_needed(with_index(manifest, factory, 4000 * MIB), num_processes=4)
    assert mapped == bytes_needed(with_index(manifest, factory, MIB), num_processes=4) < 1000 * MIB


@pytest.mark.parametrize("factory", ["IVF8192,PQ64x4fsr", "IVF2048,RaBitQfs"])
def test_codes_for_fast_scans_cost_their_size_in_each_process(manifest: Manifest, factory: str) -> None:
    mapped = bytes_needed(with_index(manifest, None, MIB), num_processes=4)
    assert bytes_needed(with_index(manifest, factory, 500 * MIB), num_processes=4) == mapped + 4 * 500 * MIB


def test_the_check_itself_needs_room(manifest: Manifest) -> None:
    assert bytes_needed(manifest, num_processes=1) > 100 * MIB


def test_too_little_memory_is_said_with_both_numbers(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / manifest.version
    require_memory(path, num_processes=1)
    monkeypatch.setattr(memory_check, "available_memory_bytes", lambda: 10 * MIB)
    with pytest.raises(BundleError, match=r"need about \d+ MiB of their own, and 10 MiB can be had"):
        require_memory(path, num_processes=1)


def test_a_server_without_room_keeps_the_old_version_and_says_why(tmp_path: Path) -> None:
    """The server's parent believes that there is no memory left; the first version needs no asking."""
    bundles = tmp_path / "bundles"
    good = SmallVersion(seed=1).publish(bundles)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'serve' in sys.orig_argv:\n"
        "    from re4.serving.host import cgroups\n    cgroups.available_memory_bytes = lambda: 0\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    with RunningServer(bundles, "--poll-interval-s", "0.02", env=env) as running:
        refused = SmallVersion(seed=2).publish(bundles)
        running.wait_for(f"version {refused} refused, the old one stays live: .*0 MiB can be had")
        with RetrievalClient(running.address) as client:
            assert client.retrieve(["item-1-é"], 5).version == good
            facts = client.info()
            assert (facts["version"], facts["failed_version"]) == (good, refused)
            assert "--no-memory-check turns this off" in facts["failure"]
    with RunningServer(bundles, "--poll-interval-s", "0.02", "--no-memory-check", env=env) as running:
        seen = running.num_lines
        name = SmallVersion(seed=3).publish(bundles)
        running.wait_for(f"worker 1: serving {name}", after=seen)
