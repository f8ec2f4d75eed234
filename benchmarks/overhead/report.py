"""Figures of a benchmark of the overhead, from its rounds: JSON, and the same as text.

A share is computed within a round, from measurements seconds apart; the figure is the median over rounds,
with the lowest and the highest.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from re4.benchmarks.common.intervals import half_width
from re4.benchmarks.common.markdown_table import page_table
from re4.benchmarks.overhead.measure import Bare, Served

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Round:
    """What was measured one after the other."""

    bare: Bare
    null: Served
    served: Served


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two servers measured one after the other."""

    served: Served
    against: Served


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure that the system promises."""

    name: str
    text: str
    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, value: float) -> bool:
        """Whether a value keeps the promise."""
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)


GOALS: Final = (
    Goal(
        name="throughput_share",
        text="Retrieve, saturated: answers/s as a share of 1 / (pipeline batched + null call)",
        at_least=0.90,
    ),
    Goal(
        name="p50_multiple",
        text="Retrieve, alone: median as a multiple of (pipeline single + null call's median)",
        at_most=1.15,
    ),
    Goal(
        name="batch_share",
        text="BatchRetrieve, 64 users: users/s as a share of 1 / pipeline batched",
        at_least=0.85,
    ),
)
CPU_GOALS: Final = (
    Goal(name="throughput_cpu_share", text="the first, by processor time", at_least=0.90),
    Goal(name="batch_cpu_share", text="the third, by processor time", at_least=0.85),
)
PAIR_NAMES: Final = {
    "saturated_us": "a request of a saturated server",
    "p50_us": "the median of a call alone",
    "batch_us": "a user of BatchRetrieve",
    "cpu_us": "processor time of a request",
}


def shares(one: Round) -> dict[str, float]:
    """The figures of a round."""
    bare, null, served = one.bare, one.null, one.served
    assert served.batch is not None
    return {
        "throughput_share": (bare.batched_us + null.saturated.wall_us) / served.saturated.wall_us,
        "p50_multiple": served.p50_us / (bare.single_us + null.p50_us),
        "batch_share": bare.batched_us / served.batch.wall_us,
        "throughput_cpu_share": (bare.batched_cpu_us + null.saturated.cpu_us) / served.saturated.cpu_us,
        "batch_cpu_share": bare.batched_cpu_us / served.batch.cpu_us,
    }


def times(one: Round) -> dict[str, float]:
    """What the shares are made of, in microseconds."""
    assert one.served.batch is not None
    return {
        "pipeline_single_us": one.bare.single_us,
        "pipeline_batched_us": one.bare.batched_us,
        "pipeline_batched_cpu_us": one.bare.batched_cpu_us,
        "null_call_us": one.null.saturated.wall_us,
        "null_call_cpu_us": one.null.saturated.cpu_us,
        "null_p50_us": one.null.p50_us,
        "retrieve_us": one.served.saturated.wall_us,
        "retrieve_cpu_us": one.served.saturated.cpu_us,
        "retrieve_p50_us": one.served.p50_us,
        "batch_retrieve_user_us": one.served.batch.wall_us,
        "batch_retrieve_user_cpu_us": one.served.batch.cpu_us,
    }


def ratios(pair: Pair) -> dict[str, float]:
    """How many times as long the first server of a pair takes."""
    ours, theirs = pair.served, pair.against
    assert ours.batch is not None
    assert theirs.batch is not None
    return {
        "saturated_us": ours.saturated.wall_us / theirs.saturated.wall_us,
        "p50_us": ours.p50_us / theirs.p50_us,
        "batch_us": ours.batch.wall_us / theirs.batch.wall_us,
        "cpu_us": ours.saturated.cpu_us / theirs.saturated.cpu_us,
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median, extremes, and the half-width of the mean's 95 % interval."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "mean": statistics.fmean(values),
        "half_width": half_width(values),
    }


def summary(rounds: Sequence[Round], pairs: Sequence[Pair]) -> dict[str, Any]:
    """All figures over the rounds."""

    def over(records: Sequence[dict[str, float]]) -> dict[str, Any]:
        return {name: spread([record[name] for record in records]) for name in records[0]} if records else {}

    figures = over([shares(one) for one in rounds])
    return {
        "figures": figures,
        "goals": {
            goal.name: {
                "at_least": goal.at_least,
                "at_most": goal.at_most,
                "is_met": goal.is_met(figures[goal.name]["median"]),
            }
            for goal in (*GOALS, *CPU_GOALS)
            if figures
        },
        "times": over([times(one) for one in rounds]),
        "ratios": over([ratios(pair) for pair in pairs]),
        "rounds": [asdict(one) for one in rounds],
        "pairs": [asdict(pair) for pair in pairs],
    }


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report's Markdown. `report` is the JSON object."""
    parts = ["# What the server adds to the work"]
    if report["figures"]:
        parts += [
            page_table(
                ["figure", "median", "lowest to highest", "goal", ""],
                [_goal_row(goal, report) for goal in (*GOALS, *CPU_GOALS)],
            ),
            "## Times\n\nMicroseconds for one request, or one user.\n\n"
            + page_table(
                ["", "median", "lowest to highest"],
                [
                    [name.removesuffix("_us").replace("_", " "), f"{found['median']:,.0f}", _range(found, 0)]
                    for name, found in report["times"].items()
                ],
            ),
        ]
    if report["ratios"]:
        parts.append(
            f"## Against {report['against']['version']}\n\nTime of the bundle divided by time of the other, "
            f"{len(report['pairs'])} interleaved pairs; ± is half of the 95 % interval of the mean.\n\n"
            + page_table(
                ["", "mean", "±", "lowest to highest"],
                [
                    [PAIR_NAMES[name], f"{found['mean']:.3f}", _half(found), _range(found, 3)]
                    for name, found in report["ratios"].items()
                ],
            )
        )
    conditions = report["conditions"]
    parts.append(
        "## Conditions\n\n"
        + "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in conditions.items())
    )
    parts.append(f"## Again\n\n```\n{report['command']}\n```")
    return "\n\n".join(parts) + "\n"


def _goal_row(goal: Goal, report: Mapping[str, Any]) -> list[str]:
    found = report["figures"][goal.name]
    bound = f"≥ {goal.at_least:.2f}" if goal.at_least is not None else f"≤ {goal.at_most:.2f}"
    is_met = report["goals"][goal.name]["is_met"]
    return [goal.text, f"{found['median']:.3f}", _range(found, 3), bound, "met" if is_met else "**missed**"]


def _range(found: Mapping[str, Any], digits: int) -> str:
    return f"{found['low']:,.{digits}f} to {found['high']:,.{digits}f}"


def _half(found: Mapping[str, Any]) -> str:
    return "–" if found["half_width"] is None else f"{found['half_width']:.3f}"
