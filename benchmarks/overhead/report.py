"""Figures of `re4 bench overhead`, computed within each round or pair: JSON values, and a page.

A figure is the median over rounds, with the lowest and the highest.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from re4.benchmarks.common.confidence import half_width
from re4.benchmarks.common.report import join_parts, number, page_table
from re4.benchmarks.overhead.measure import Figures

Round: TypeAlias = dict[str, Figures]
"""`bare`, `null` and `served`, the pipeline, a null server and a server; or `served` and `against`."""


class Target(NamedTuple):
    """A bound that a figure must keep."""

    text: str
    at_least: float | None = None
    at_most: float | None = None


TARGETS: Final[Mapping[str, Target]] = {
    "throughput_share": Target(
        "Retrieve, saturated: answers/s as a share of 1 / (pipeline batched + null call)", at_least=0.90
    ),
    "p50_multiple": Target(
        "Retrieve, alone: median as a multiple of (pipeline single + null call's median)", at_most=1.15
    ),
    "batch_share": Target(
        "BatchRetrieve, 64 users: users/s as a share of 1 / pipeline batched", at_least=0.85
    ),
    "throughput_cpu_share": Target("the first, by CPU time", at_least=0.90),
    "batch_cpu_share": Target("the third, by CPU time", at_least=0.85),
}
_COMPARED: Final = {
    "saturated_us": ("saturated", "wall_us", "a request of a saturated server"),
    "p50_us": ("", "p50_us", "the median of a call alone"),
    "batch_us": ("batch", "wall_us", "a user of BatchRetrieve"),
    "cpu_us": ("saturated", "cpu_us", "CPU time of a request"),
}
"""Of a pair: where a figure stands, and its text."""


def times(one: Round) -> dict[str, float]:
    """Return the times of a round, in microseconds."""
    bare, null, served = one["bare"], one["null"], one["served"]
    return {
        "pipeline_single_us": bare["single_us"],
        "pipeline_batched_us": bare["batched_us"],
        "pipeline_batched_cpu_us": bare["batched_cpu_us"],
        "null_call_us": null["saturated"]["wall_us"],
        "null_call_cpu_us": null["saturated"]["cpu_us"],
        "null_p50_us": null["p50_us"],
        "retrieve_us": served["saturated"]["wall_us"],
        "retrieve_cpu_us": served["saturated"]["cpu_us"],
        "retrieve_p50_us": served["p50_us"],
        "batch_retrieve_user_us": served["batch"]["wall_us"],
        "batch_retrieve_user_cpu_us": served["batch"]["cpu_us"],
    }


def shares(one: Round) -> dict[str, float]:
    """Return the figures of a round, by the names of `TARGETS`."""
    us = {name.removesuffix("_us"): value for name, value in times(one).items()}
    return {
        "throughput_share": (us["pipeline_batched"] + us["null_call"]) / us["retrieve"],
        "p50_multiple": us["retrieve_p50"] / (us["pipeline_single"] + us["null_p50"]),
        "batch_share": us["pipeline_batched"] / us["batch_retrieve_user"],
        "throughput_cpu_share": (us["pipeline_batched_cpu"] + us["null_call_cpu"]) / us["retrieve_cpu"],
        "batch_cpu_share": us["pipeline_batched_cpu"] / us["batch_retrieve_user_cpu"],
    }


def ratios(pair: Round) -> dict[str, float]:
    """Return the times of a pair's first server as multiples of the second one's."""
    found = {}
    for name, (part, key, _) in _COMPARED.items():
        ours, theirs = ((one[part] if part else one)[key] for one in (pair["served"], pair["against"]))
        found[name] = ours / theirs
    return found


def summary(rounds: Sequence[Round], pairs: Sequence[Round]) -> dict[str, Any]:
    """Return all figures over the rounds."""

    def over(records: Sequence[dict[str, float]]) -> dict[str, Any]:
        return {name: _spread([record[name] for record in records]) for name in records[0]} if records else {}

    figures = over([shares(one) for one in rounds])
    return {
        "figures": figures,
        "goals": {
            name: {
                "at_least": target.at_least,
                "at_most": target.at_most,
                "is_met": (target.at_least or 0.0) <= figures[name]["median"] <= (target.at_most or math.inf),
            }
            for name, target in TARGETS.items()
            if figures
        },
        "times": over([times(one) for one in rounds]),
        "ratios": over([ratios(pair) for pair in pairs]),
        "rounds": rounds,
        "pairs": pairs,
    }


def render_markdown(report: Mapping[str, Any]) -> str:
    """Return the page of a report, which is the JSON object."""
    parts = ["# What the server adds to the work"]
    if report["figures"]:
        parts += [
            page_table(
                ["figure", "median", "lowest to highest", "goal", ""],
                [_target_row(name, target, report) for name, target in TARGETS.items()],
            ),
            "## Times\n\nMicroseconds for one request, or one user.",
            page_table(
                ["", "median", "lowest to highest"],
                [
                    [name.removesuffix("_us").replace("_", " "), number(found["median"], 0), _range(found, 0)]
                    for name, found in report["times"].items()
                ],
            ),
        ]
    if report["ratios"]:
        parts += [
            f"## Against {report['against']['version']}\n\nTime of the bundle divided by time of the other, "
            f"{len(report['pairs'])} interleaved pairs; ± is half of the 95 % interval of the mean.",
            page_table(
                ["", "mean", "±", "lowest to highest"],
                [
                    [
                        _COMPARED[name][2],
                        *(number(found[key], 3) for key in ("mean", "half_width")),
                        _range(found, 3),
                    ]
                    for name, found in report["ratios"].items()
                ],
            ),
        ]
    conditions = (f"- {name.replace('_', ' ')}: {value}" for name, value in report["conditions"].items())
    parts += ["## Conditions", "\n".join(conditions), f"## Again\n\n```\n{report['command']}\n```"]
    return join_parts(parts)


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return median, extremes, mean, and the half-width of the mean's 95 % interval."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "mean": statistics.fmean(values),
        "half_width": half_width(values),
    }


def _target_row(name: str, target: Target, report: Mapping[str, Any]) -> list[str]:
    found, is_met = report["figures"][name], report["goals"][name]["is_met"]
    bound = f"≥ {target.at_least:.2f}" if target.at_least is not None else f"≤ {target.at_most:.2f}"
    return [target.text, f"{found['median']:.3f}", _range(found, 3), bound, "met" if is_met else "**missed**"]


def _range(found: Mapping[str, Any], digits: int) -> str:
    return f"{found['low']:,.{digits}f} to {found['high']:,.{digits}f}"
