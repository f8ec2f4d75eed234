"""A crash loop is slowed down, a lone crash is not."""

from re4.serving.host.backoff import Backoff


def test_a_crash_loop_is_slowed_down_to_a_bound() -> None:
    backoff = Backoff()
    delays = [backoff.delay_s(1.0) for _ in range(10)]
    assert delays == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_what_lived_long_is_started_again_at_once() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.delay_s(0.0)
    assert backoff.delay_s(3600.0) == 0
    assert backoff.delay_s(1.0) == 0.5
