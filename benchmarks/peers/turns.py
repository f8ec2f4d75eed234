"""All systems up at once and loaded in turns, so that what slows the machine for a while slows them alike.

A sweep takes minutes, and a shared machine may be half as fast by the time of the next system's. Here a round
takes all settings one after the other, and ratios are computed within a round. They are of what can be had in
seconds: answers a second and processor time at saturation, and a lone caller's median. One caller, and 64,
wait for their answers, so pauses hardly show: this says what answers cost, and sweeps say how late they come.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Final

from re4.benchmarks.common.cores import on_core
from re4.benchmarks.common.steadiness import measure_steadiness
from re4.benchmarks.load_generator.client import INTERRUPTED
from re4.benchmarks.peers.comparison import OURS
from re4.benchmarks.peers.measure import LONE, SATURATING, Started, Terms, started
from re4.benchmarks.peers.system import Material, Setting, System
from re4.benchmarks.peers.truth import Truth
from re4.benchmarks.serve.measure import Point, StoppedError
from re4.benchmarks.serve.pairs import ratios
from re4.benchmarks.serve.report import point_facts

_log = logging.getLogger(__name__)

LOADS: Final = {"saturation": SATURATING, "lone caller": LONE}


def measure_turns(
    entrants: Sequence[tuple[System, Setting, int]],
    material: Material,
    truth: Truth,
    terms: Terms,
    *,
    num_rounds: int,
) -> dict[str, Any]:
    """Load every system, each at its setting and effort, `num_rounds` times in turns.

    Returns:
        `settings`, each with its `points` and, but for ours, `ours_is_times`: for each load, ours as a
        multiple of its figures (`pairs.ratios`). What there is of it where it was `stopped`.

    Raises:
        Re4Error: a server or a client did not start.
    """
    steadiness = measure_steadiness()
    with ExitStack() as stack:
        subjects = [
            stack.enter_context(started(*entrant, material, truth, terms, max_other_cores=None))
            for entrant in entrants
        ]
        points = [
            {purpose: subject.bench.begin(load, purpose=purpose) for purpose, load in LOADS.items()}
            for subject in subjects
        ]
        with on_core(terms.cores[1]):
            problem = _take_turns(subjects, points, num_rounds)
    ours = next((its for subject, its in zip(subjects, points, strict=True) if _is_ours(subject)), None)
    return {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_rounds": num_rounds,
        "steadiness_before": steadiness,
        "stopped": problem,
        "settings": [
            subject.facts()
            | {
                "points": [point_facts(point) for point in its.values() if point.runs],
                "ours_is_times": None
                if ours is None or _is_ours(subject)
                else {purpose: ratios(its[purpose], ours[purpose]) for purpose in LOADS},
            }
            for subject, its in zip(subjects, points, strict=True)
        ],
    }


def _take_turns(
    subjects: Sequence[Started], points: Sequence[dict[str, Point]], num_rounds: int
) -> str | None:
    """Gives why it ended early, where it did."""
    order = list(zip(subjects, points, strict=True))
    try:
        for number in range(num_rounds):
            _log.info(f"round {number + 1} of {num_rounds}")
            for subject, its in order:
                for point in its.values():
                    subject.bench.run_once(point, num_runs=num_rounds)
            order = order[1:] + order[:1]  # who goes first takes turns
    except StoppedError as error:
        return str(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return None


def _is_ours(subject: Started) -> bool:
    return subject.system.name == OURS
