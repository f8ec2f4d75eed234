"""A canary is judged by what servers counted since the watch began."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from re4.common.errors import ServerError
from re4.serving.versions.canary_judge import Bounds, Counts, judge, read_counts, status_rows, watch_canary

BOUNDS = Bounds(min_calls=100)


def page(folder: Path, **counts: tuple[int, int, float]) -> str:
    """A metrics page with calls, faults and seconds of each version."""
    lines = []
    for role, (calls, faults, seconds) in counts.items():
        lines += [
            f're4_canary_calls_total{{role="{role}",code="OK"}} {calls - faults}',
            f're4_canary_calls_total{{role="{role}",code="INTERNAL"}} {faults}',
        ]
        for bound in ("0.01", "0.1", "1.0", "+Inf"):
            num = calls if float(bound) >= seconds else 0
            lines.append(f're4_canary_call_seconds_bucket{{role="{role}",le="{bound}"}} {num}')
    path = folder / "page"
    path.write_text("\n".join(lines) + "\n")
    return path.as_uri()


@pytest.mark.parametrize(
    ("live", "canary", "words"),
    [
        ((1000, 5, 0.01), (200, 1, 0.01), None),
        ((1000, 0, 0.01), (200, 3, 0.01), "1.50% of its 200 calls failed"),
        ((1000, 0, 0.01), (99, 99, 0.01), None),
        ((1000, 0, 0.01), (200, 0, 0.1), "its p99 is up to 0.1 s, the live version's up to 0.01 s"),
        ((0, 0, 0.01), (200, 0, 0.1), None),
    ],
)
def test_worse_than_the_bounds_allow(
    live: tuple[int, int, float], canary: tuple[int, int, float], words: str | None, tmp_path: Path
) -> None:
    counts = read_counts([page(tmp_path, live=live, canary=canary)])
    reason = judge(counts, BOUNDS, role="canary")
    assert reason is None if words is None else words in str(reason)


def recall_page(folder: Path, *, live: tuple[float, int], canary: tuple[float, int]) -> str:
    """A metrics page with 200 calls of each version, and the recall of some answers."""
    url = page(folder, live=(200, 0, 0.01), canary=(200, 0, 0.01))
    lines = [
        're4_live_version{version="a"} 1',
        're4_canary_share{version="b",mode="canary"} 0.5',
        're4_online_recall{version="old"} 0.1',
        're4_online_recall_samples_total{version="old"} 500',
    ]
    for name, (recall, num_samples) in {"a": live, "b": canary}.items():
        lines.append(f're4_online_recall{{version="{name}"}} {recall}')
        lines.append(f're4_online_recall_samples_total{{version="{name}"}} {num_samples}')
    with Path(url.removeprefix("file://")).open("a") as file:
        file.write("\n".join(lines) + "\n")
    return url


@pytest.mark.parametrize(
    ("live", "canary", "words"),
    [
        ((0.96, 100), (0.95, 30), None),
        ((0.96, 100), (0.93, 30), "the recall of its 30 measured answers is 0.930, the live version's 0.960"),
        ((0.96, 100), (0.5, 19), None),
        ((0.96, 19), (0.5, 100), None),
    ],
)
def test_a_lower_recall_online_is_worse(
    live: tuple[float, int], canary: tuple[float, int], words: str | None, tmp_path: Path
) -> None:
    counts = read_counts([recall_page(tmp_path, live=live, canary=canary)])
    assert judge(counts, BOUNDS, role="canary") == words


def test_recall_is_that_of_the_answers_since_the_watch_began(tmp_path: Path) -> None:
    before = read_counts([recall_page(tmp_path, live=(0.9, 100), canary=(0.5, 100))])
    since = read_counts([recall_page(tmp_path, live=(0.9, 200), canary=(0.7, 200))]).since(before)
    assert since.recall("canary") == pytest.approx(0.9)
    assert judge(since, BOUNDS, role="canary") is None
    assert before.since(before).recall("canary") is None
    assert status_rows(before, role="canary") == [
        ["live", "a", "200", "0.00%", "≤ 10 ms", "0.900 (100 answers)"],
        ["canary", "b", "200", "0.00%", "≤ 10 ms", "0.500 (100 answers)"],
    ]
    assert status_rows(Counts(), role="shadow")[1] == ["shadow", "–", "–", "–", "–", "–"]


def test_counts_from_before_the_watch_do_not_count() -> None:
    before = Counts(calls=Counter(canary=500), faults=Counter(canary=500))
    now = Counts(calls=Counter(canary=700, live=700), faults=Counter(canary=500))
    assert judge(now.since(before), BOUNDS, role="canary") is None
    assert judge(now, BOUNDS, role="canary") is not None


def watched(tmp_path: Path, change: Callable[[int], object]) -> str | None:
    """Watch for ten minutes of a clock that each wait moves on."""
    now_s = 0.0
    url = page(tmp_path, live=(10, 0, 0.01), canary=(10, 0, 0.01))

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        change(round(now_s))

    return watch_canary([url], is_shadow=False, minutes=10, bounds=BOUNDS, sleep=sleep, clock_s=lambda: now_s)


def test_a_canary_that_holds_may_go_live_and_one_that_fails_ends_at_once(tmp_path: Path) -> None:
    assert watched(tmp_path, lambda s: page(tmp_path, live=(s, 0, 0.01), canary=(s, 0, 0.01))) is None
    seen: list[int] = []

    def fail(second: int) -> None:
        seen.append(second)
        page(tmp_path, live=(second, 0, 0.01), canary=(second, second // 2, 0.01))

    assert "failed" in str(watched(tmp_path, fail))
    assert max(seen) < 200
    assert "100 are needed" in str(watched(tmp_path, lambda _: None))


def test_a_page_that_is_gone_for_a_while_ends_nothing(tmp_path: Path) -> None:
    def change(second: int) -> None:
        url = page(tmp_path, live=(second, 0, 0.01), canary=(second, 0, 0.01))
        if second == 300:
            Path(url.removeprefix("file://")).unlink()

    assert watched(tmp_path, change) is None
    with pytest.raises(ServerError, match="metrics page"):
        read_counts([(tmp_path / "none").as_uri()])
