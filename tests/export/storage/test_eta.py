"""Progress of long work, with the time left."""

import pytest

from re4.exporting.storage import eta as time_left
from re4.exporting.storage.eta import EtaReporter, format_duration


def test_time_left_follows_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now, reports = [100.0], []
    monkeypatch.setattr(time_left, "monotonic", lambda: now[0])
    work = EtaReporter(reports.append, "filling", 1000, done=200)
    now[0] = 101.0
    work.at(300)  # too soon for a report
    now[0] = 110.0
    work.at(400)
    now[0] = 110.5
    work.at(500)
    now[0] = 140.0
    work.at(1000)
    assert reports == ["filling: 40%, 30 s left", "filling: 100%, 1 s left"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7500, "2 h 5 min")]
)
def test_durations_are_formatted_for_people(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words
