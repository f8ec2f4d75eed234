"""When each stage of a call began and ended, put together from the times that its batch took."""

from typing import TypeAlias

from serving.pipeline import StageTimes

Stage: TypeAlias = tuple[str, float, float]
"""Name, begin and end in `perf_counter` seconds."""


def stages_of(times: StageTimes, queue_us: int, began_s: float) -> tuple[Stage, ...]:
    """The stages from the queue to the merged list, one after the other.

    Args:
        times: Where the time of the call's batch went.
        queue_us: How long it waited for its batch.
        began_s: When it was queued, by `perf_counter`.
    """
    lengths_us = {
        "queue": queue_us,
        "gather": times.gather_us,
        "encode": times.encode_us,
        "search": times.search_us,
        "merge": times.merge_us,
    }
    stages = []
    for name, length_us in lengths_us.items():
        ended_s = began_s + length_us / 1e6
        stages.append((name, began_s, ended_s))
        began_s = ended_s
    return tuple(stages)
