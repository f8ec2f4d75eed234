"""What all tests of benchmarks share."""

import sys

import pytest

from re4.benchmarks.common import cpu_stability


@pytest.fixture(autouse=True)
def short_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds before every report would be most of what the tests take."""
    monkeypatch.setattr(cpu_stability, "_SECONDS", 0.1)


@pytest.fixture(autouse=True)
def children_do_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that a benchmark starts runs what started this one first, which is pytest."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
