"""What all tests of benchmarks share."""

import pytest

from benchmarks.latency import steadiness


@pytest.fixture(autouse=True)
def short_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds before every report would be most of what the tests take."""
    monkeypatch.setattr(steadiness, "_SECONDS", 0.1)
