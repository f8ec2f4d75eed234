"""The arithmetic of the load generator: histograms, schedules, intervals."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_server import VERSION, reply

from re4.benchmarks.common.confidence import interval
from re4.benchmarks.load_generator.call_stats import Histogram, Recorder, nearest_rank
from re4.benchmarks.load_generator.load import OpenLoad, arrival_times
from re4.benchmarks.load_generator.transport import parse_retrieve_reply

VALUES = st.lists(st.integers(0, 5_000_000), min_size=1, max_size=200)


@given(VALUES, VALUES, st.floats(0, 100))
def test_a_histogram_added_up_and_sent_keeps_percentiles_to_a_thousandth(
    first: list[int], second: list[int], percent: float
) -> None:
    whole = Histogram.of(np.array(first))
    whole.add(Histogram.of(np.array(second)))
    sent = pickle.loads(pickle.dumps(whole))
    values = sorted(first + second)
    right = values[nearest_rank(percent, len(values)) - 1]
    assert sent.count == len(values)
    assert right <= sent.percentile(percent) <= right * 1.001 + 1


def test_an_empty_histogram_has_no_figures() -> None:
    empty = pickle.loads(pickle.dumps(Histogram()))
    assert (empty.count, empty.mean, empty.max, empty.percentile(50)) == (0, None, None, None)


def test_latency_counts_from_the_time_a_call_was_due_and_the_warm_up_is_left_out() -> None:
    recorder = Recorder(count_from=10.0)
    parsed = parse_retrieve_reply(reply())
    assert parsed.version == VERSION
    recorder.answered(9.9, 10.5, 11.0, parsed)  # due in the warm-up, though sent after it
    recorder.answered(10.0, 10.5, 12.0, parsed)  # sent half a second late by the client
    recorder.failed(10.1, 10.1, 10.2, "RESOURCE_EXHAUSTED", "full")
    stats = recorder.stats(counted_s=1.0, stopped=None)
    assert (stats.num_warmup, stats.num_calls, stats.answered_us.count) == (1, 2, 1)
    assert stats.answered_us.max == pytest.approx(2e6, rel=1e-3)
    assert stats.lag_us.max == pytest.approx(5e5, rel=1e-3)
    assert stats.percentile_ms(50) == pytest.approx(2000, rel=1e-3)
    assert stats.percentile_ms(51) is None
    assert stats.achieved_per_s == 0.5  # the last answer came a second after the sending had ended


def test_the_99th_percentile_of_a_hundred_is_the_99th() -> None:
    assert nearest_rank(99, 100) == 99
    assert nearest_rank(99.9, 1000) == 999
    assert nearest_rank(0, 10) == 1
    assert nearest_rank(100, 10) == 10


def test_constant_arrivals_of_all_workers_interleave_evenly() -> None:
    load = OpenLoad(rate_per_s=120, arrivals="constant")
    shares = [arrival_times(load, 2.0, worker=worker, num_workers=3, seed=0) for worker in range(3)]
    assert np.diff(np.sort(np.concatenate(shares))) == pytest.approx(1 / 120)
    assert sum(map(len, shares)) == 240


def test_poisson_arrivals_have_the_rate_and_the_spread_of_independent_users() -> None:
    load = OpenLoad(rate_per_s=1000, arrivals="poisson")
    shares = [arrival_times(load, 20.0, worker=worker, num_workers=2, seed=4) for worker in range(2)]
    gaps = np.diff(np.sort(np.concatenate(shares)))
    assert 1 / gaps.mean() == pytest.approx(1000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # an exponential's are equal
    assert np.exp(-1) == pytest.approx((gaps > gaps.mean()).mean(), abs=0.02)


def test_an_interval_is_student_s() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found == {"mean": 2.0, "low": 0.0, "high": pytest.approx(2 + 4.303 / 3**0.5)}


def test_a_run_without_the_figure_leaves_no_interval() -> None:
    assert interval([1.0, None, 3.0]) is None
    assert interval([5.0]) == {"mean": 5.0, "low": None, "high": None}
