"""Hardware of the client's machine, and the versions of the packages that ran on it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from re4.benchmarks.common.cpu_stability import measure_cpu_stability

_PACKAGES: Final = ("re4-retrieval", "grpcio", "protobuf", "numpy", "faiss-cpu", "faiss-gpu", "onnxruntime")


def describe_machine() -> dict[str, Any]:
    """Return hardware, CPU flags, operating system and versions, as plain values."""
    cpu = _cpu_fields()
    return {
        "cpu_model": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": sorted(cpu.get("flags", "").split()),
        "num_cpus": os.cpu_count(),
        "num_usable_cpus": len(psutil.Process().cpu_affinity() or []),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average_at_start": list(os.getloadavg()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def describe_idle_machine() -> dict[str, Any]:
    """Return the same and its CPU stability, which takes seconds: call it before a server starts."""
    return describe_machine() | {"steadiness": measure_cpu_stability()}


def _cpu_fields() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
