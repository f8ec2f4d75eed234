"""Cores and memory as a container may use them, from made-up `proc` and `sys` folders."""

import os
from pathlib import Path

import pytest

from re4.serving.host.cgroups import available_memory_bytes, usable_cores

GIB = 1 << 30


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "50000 100000"}, 1),
        # The group around it is the tighter one.
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "600000 100000",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
            },
            3,
        ),
        # In a container, with the host's name for the group.
        ({"proc/self/cgroup": "0::/host/name", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/pod\n0::/",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/pod",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_cores_are_those_of_affinity_and_of_every_quota(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(machine(tmp_path, files)) == cores


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cores(tmp_path) == 1


MEMINFO = {"proc/meminfo": f"MemTotal: {64 << 20} kB\nMemAvailable:  {16 << 20} kB"}


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 16),
        (
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": str(4 * GIB),
                "sys/fs/cgroup/memory.current": str(3 * GIB),
                "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, 16),
        (
            {
                "proc/self/cgroup": "4:memory:/pod",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": str(8 * GIB),
                "sys/fs/cgroup/memory/pod/memory.usage_in_bytes": str(9 * GIB),
            },
            0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/pod",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/pod/memory.usage_in_bytes": str(GIB),
            },
            16,
        ),
    ],
)
def test_memory_is_what_the_machine_and_every_group_leave(
    tmp_path: Path, files: dict[str, str], gib: int
) -> None:
    assert available_memory_bytes(machine(tmp_path, MEMINFO | files)) == gib * GIB


def test_this_machine_says_something() -> None:
    assert usable_cores() >= 1
    assert available_memory_bytes() > 0
