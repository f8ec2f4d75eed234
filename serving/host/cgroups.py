"""Cores and memory that affinity and control groups leave to this process.

A container sees all cores and all memory of its host. Its limits are in its control group (version 1 or 2)
and in those around it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
_UNLIMITED_BYTES: Final = 1 << 60
"""Version 1 writes a number near 2^63 where it sets no limit."""


def usable_cores(root: Path = _ROOT) -> int:
    """Return the whole cores that this process may keep busy, at least 1.

    Args:
        root: Folder of `proc` and `sys`; tests pass another.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for group in _groups(root, "cpu"):
        cores = min(cores, _quota(group))
    return max(1, int(cores))


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Return the bytes that can be allocated before the machine or a control group runs short.

    File pages that the system can reclaim at once count as available.

    Args:
        root: Folder of `proc` and `sys`; tests pass another.
    """
    fields = dict(line.split(":", 1) for line in _lines(root / "proc/meminfo"))
    available = (
        int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else _UNLIMITED_BYTES
    )
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= _UNLIMITED_BYTES:
            continue
        counts = dict(line.split() for line in _lines(group / "memory.stat"))
        reclaimable = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
        available = min(available, max(0, limit - used + reclaimable))
    return available


def _quota(group: Path) -> float:
    """Return the cores that a group may use; infinite where it sets no limit."""
    words = " ".join(_lines(group / "cpu.max")).split()
    if not words:
        words = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    if len(words) != 2 or words[0] in ("max", "-1"):
        return float("inf")
    return int(words[0]) / int(words[1])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, innermost first."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = Path(place.lstrip("/"))
        # In a container the mount is the container's own group, and `place` may be the host's name for it.
        yield from (mount / folder for folder in (inner, *inner.parents) if (mount / folder).is_dir())


def _number(*paths: Path) -> int | None:
    """Return the integer in the first of these files that has one."""
    for path in paths:
        for line in _lines(path):
            if line.isdigit():
                return int(line)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
