"""Values with pauses between chunks."""

import pytest

from re4.common import pauses
from re4.common.pauses import with_pauses


@pytest.mark.parametrize(("number", "num_pauses"), [(0, 0), (3, 0), (4, 1), (9, 2), (10, 3)])
def test_a_pause_follows_each_chunk_but_the_last(
    number: int, num_pauses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(pauses, "sleep", slept.append)
    assert list(with_pauses(range(number), 3)) == list(range(number))
    assert len(slept) == num_pauses
