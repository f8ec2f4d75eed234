"""What the client's machine is, and which versions of what ran on it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from re4.benchmarks.common.steadiness import measure_steadiness

_PACKAGES: Final = ("re4-retrieval", "grpcio", "protobuf", "numpy", "faiss-cpu", "faiss-gpu", "onnxruntime")


def describe_machine() -> dict[str, Any]:
    """Hardware, CPU flags, operating system and versions, as plain values."""
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


def describe_machine_alone() -> dict[str, Any]:
    """The same, and how evenly it runs by itself, which takes seconds: to be asked before a server starts."""
    return describe_machine() | {"steadiness": measure_steadiness()}


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
