"""Environments of the peers that `make peers` installs, each apart from this one's packages."""

from pathlib import Path
from typing import Final

BASELINES: Final = Path(__file__).resolve().parents[1] / "peers" / "baselines"


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment."""
    return BASELINES / environment / "bin" / "python"


def missing(environment: str) -> str | None:
    """Return why an environment cannot be used; None where it can."""
    python = python_of(environment)
    return None if python.exists() else f"no environment at {python.parents[1]}: run make peers"
