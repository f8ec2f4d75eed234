"""A comparison as text: who is ahead first, then every figure behind it, then how to get it again."""

import math
from collections.abc import Mapping
from typing import Any

from re4.benchmarks.common.markdown_table import page_table
from re4.benchmarks.common.steadiness import in_words
from re4.benchmarks.peers.comparison import OURS, figures_of
from re4.benchmarks.peers.turns import LOADS


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report's Markdown. `report` is the JSON object."""
    parts = [
        f"# Serving {report['bundle']['items']['num_items']:,} items, side by side",
        "" if report["status"] == "complete" else f"**PARTIAL REPORT: {report['status_reason']}.**",
        first_paragraph(report),
        "![99th percentile against load, all systems](report.png)" if report["systems"] else "",
        "## Systems\n\n*Sustained* is the highest rate, open loop, at which 99 % of all calls take at most "
        f"{report['terms']['p99_ms']:g} ms; ± is half of the 95 % interval of the mean over "
        f"{report['terms']['num_runs']} runs. Latencies are of that rate; *lone* is the median of a caller "
        "who waits for each answer, *saturated* what 64 such callers get, and *CPU* is the server's "
        "processor time for one of those answers, which other work on the machine hardly changes. Memory "
        "that processes share is divided among them.\n\n" + _systems(report),
        _in_turns(report["in_turns"]),
        _skipped(report),
        "## Loads\n\n" + _loads(report),
        "## Conditions\n\n" + _conditions(report),
        "## Again\n\nmake peers, then\n\n```\n" + "\n".join(_commands(report)) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def first_paragraph(report: Mapping[str, Any]) -> str:
    """Who is ahead, by sweeps and in turns, where either was measured."""
    return " ".join(filter(None, [headline(report), _in_turns_in_words(report)]))


def headline(report: Mapping[str, Any]) -> str:
    """The first paragraph: who is ahead, by how much, and where a peer is ahead of us."""
    found, terms = report["comparison"], report["terms"]
    ours = next((one for one in found["best"] if one["system"] == OURS), None)
    if not report["systems"]:
        return ""
    if ours is None:
        return "Nothing of ours was sustained, so there is nothing to compare."
    least = "at least " if ours["is_client_limited"] else ""
    text = (
        f"At {report['bundle']['items']['num_items']:,} items, {terms['num_candidates']} candidates and "
        f"recall ≥ {terms['min_recall']:g}, on one core, Re4 Retrieval sustains **{least}"
        f"{ours['sustained_per_s']['mean']:,.0f} requests/s** within a 99th percentile of "
        f"{terms['p99_ms']:g} ms"
    )
    peers = [one for one in found["best"] if one["system"] != OURS]
    if peers:
        text += ": " + ", ".join(
            f"**{least}{one['ours_is_times']:.1f} ×** {one['title']} ({one['setting']}: "
            f"{'at least ' if one['is_client_limited'] else ''}{one['sustained_per_s']['mean']:,.0f}/s)"
            for one in peers
        )
    text += "."
    if found["share_of_in_process"] is not None:
        text += (
            f" That is {found['share_of_in_process']:.0%} of what encoding, search and merge alone do in one "
            f"process, in batches of {report['in_process']['batch_size']} "
            f"({report['in_process']['per_s']:,.0f}/s)."
        )
    if found["ahead"]:
        return text + " **Ahead of us:** " + "; ".join(found["ahead"]) + "."
    return text + (" No peer is ahead of us in rate, lone latency or memory." if peers else "")


def _systems(report: Mapping[str, Any]) -> str:
    rows = []
    for part in report["systems"]:
        one = figures_of(part)
        sustained = one["sustained_per_s"]
        rows.append(
            [
                one["title"],
                one["setting"],
                "none" if sustained is None else _least(one) + _with_half(sustained),
                _ms(one["p50_ms"]),
                _ms(one["p99_ms"]),
                _ms(one["lone_p50_ms"], 2),
                "–" if one["saturated_per_s"] is None else f"{one['saturated_per_s']:,.0f}",
                f"{one['recall']:.4f}",
                "–" if one["server_cpu_us"] is None else f"{one['server_cpu_us']:,.0f}",
                "–" if one["server_memory_bytes"] is None else f"{one['server_memory_bytes'] / 2**20:,.0f}",
                f"{part['client_ceiling_per_s']:,.0f}",
            ]
        )
    columns = ["system", "setting", "sustained/s", "p50, ms", "p99, ms", "lone, ms", "saturated/s", "recall"]
    return page_table([*columns, "CPU, µs", "server MiB", "client's ceiling/s"], rows)


def _in_turns_in_words(report: Mapping[str, Any]) -> str:
    """How much more ours answers than each peer at its better setting, where turns were taken."""
    least: dict[str, tuple[float, str]] = {}
    for one in (report["in_turns"] or {"settings": []})["settings"]:
        ratio = (one["ours_is_times"] or {}).get("saturation", {}).get("answers_per_s")
        if ratio and ratio["mean"] < least.get(one["system"], (math.inf, ""))[0]:
            text = f"**{ratio['mean']:.1f} ×** {one['title']} ({one['setting']})"
            least[one["system"]] = ratio["mean"], text
    if not least:
        return ""
    texts = ", ".join(text for _, text in least.values())
    return f"Saturated, in turns, Re4 Retrieval answers {texts}."


def _in_turns(turns: Mapping[str, Any] | None) -> str:
    if turns is None:
        return ""
    rows = []
    for one in turns["settings"]:
        by_purpose = {point["purpose"]: point for point in one["points"]}
        if len(by_purpose) < len(LOADS):
            continue
        saturated, lone = (by_purpose[purpose] for purpose in LOADS)
        times = one["ours_is_times"] or {purpose: {} for purpose in LOADS}
        rows.append(
            [
                one["title"],
                one["setting"],
                f"{saturated['achieved_per_s']['mean']:,.0f}",
                _times(times["saturation"].get("answers_per_s")),
                _times(times["saturation"].get("server_cpu_us_an_answer")),
                _ms(lone["latency_ms"]["p50"]["pooled"], 2),
                _times(times["lone caller"].get("p50_ms")),
            ]
        )
    columns = ["system", "setting", "saturated/s", "ours is ×", "CPU an answer: ours is ×", "lone p50, ms"]
    return (
        f"## In turns\n\n{turns['num_rounds']} rounds with all systems up, each saturated by 64 callers and "
        "called by one, in turns. Ratios are computed within a round, with the 95 % interval over the rounds "
        "in brackets: what slows the machine for minutes slows all alike. The machine alone: "
        f"{in_words(turns['steadiness_before'])}.\n\n" + page_table([*columns, "ours is ×"], rows)
    )


def _times(ratio: Mapping[str, float | None] | None) -> str:
    if ratio is None:
        return "–"
    low, high = ratio["low"], ratio["high"]
    return f"{ratio['mean']:.2f}" + ("" if low is None or high is None else f" ({low:.2f}–{high:.2f})")


def _skipped(report: Mapping[str, Any]) -> str:
    lines = [
        f"- {part['title']}: {str(part['skipped']).strip().splitlines()[-1]}" for part in report["skipped"]
    ]
    return "## Skipped\n\n" + "\n".join(lines) if lines else ""


def _loads(report: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{part['title']}, {part['setting']}",
            f"{point['label']}, {point['loop']} loop",
            point["purpose"] + (" (client-limited)" if point["client_limit"] else ""),
            str(point["num_runs"]),
            f"{point['achieved_per_s']['mean']:,.0f}",
            *(
                "failed" if (found := point["latency_ms"][name]["pooled"]) is None else f"{found:.1f}"
                for name in ("p50", "p90", "p99", "p99.9")
            ),
            _ms(point["client_lag_ms"]["p99"]),
            "–" if point["batch_size"]["mean"] is None else f"{point['batch_size']['mean']:.1f}",
            f"{point['num_calls']:,}",
            ", ".join(f"{code} {count:,}" for code, count in point["failures"].items()) or "0",
        ]
        for part in report["systems"]
        for point in part["points"]
    ]
    columns = ["system", "load", "for", "runs", "achieved/s", "p50", "p90", "p99", "p99.9", "lag p99"]
    return page_table([*columns, "batch", "calls", "failed"], rows)


def _conditions(report: Mapping[str, Any]) -> str:
    machine, bundle, terms = report["machine"], report["bundle"], report["terms"]
    timing = terms["timing"]
    facts = {
        "Machine": f"{machine['cpu_model']}, {machine['num_usable_cpus']} processors, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, Python {machine['python']}",
        "Cores": f"server, with all its processes, on core {terms['cores'][0]}; client on core "
        f"{terms['cores'][1]}",
        "Bundle": f"{bundle['version']}: {bundle['items']['num_items']:,} items, "
        f"{bundle['model']['num_interests']} interests of {bundle['model']['embedding_dim']} dimensions, "
        f"index {bundle['index']['factory']} {bundle['index']['search_parameters']}",
        "Requests": f"{terms['requests']}; {terms['num_candidates']} candidates",
        "Each run": f"{timing['warmup_s']:g} s warm-up, {timing['duration_s']:g} s counted, deadline "
        f"{timing['deadline_s']:g} s",
        "Versions of ours": ", ".join(f"{name} {found}" for name, found in machine["packages"].items()),
    } | {
        f"{part['title']}, {part['setting']}": f"{part['how']}; called by {part['client']}"
        + (f"; effort {part['effort']}" if part["effort"] else "")
        + (f"; {_built(part['built'])}" if part["built"] else "")
        + f"; measured {part['created_at']}, load average before {part['load_average_before']:.2f}; the "
        f"machine alone: {in_words(part['steadiness_before'])}"
        for part in report["systems"]
    }
    return "\n".join(f"- **{name}:** {text}" for name, text in facts.items())


def _built(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,.0f}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in facts.items()
    )


def _commands(report: Mapping[str, Any]) -> list[str]:
    parts = [*report["systems"], *([report["in_turns"]] if report["in_turns"] else [])]
    return list(dict.fromkeys(part["command"] for part in parts)) or [report["command"]]


def _least(one: Mapping[str, Any]) -> str:
    return "≥ " if one["is_client_limited"] else ""


def _with_half(figure: Mapping[str, float | None]) -> str:
    mean, high = figure["mean"], figure["high"]
    assert mean is not None
    return f"{mean:,.0f}" + ("" if high is None else f" ±{high - mean:,.0f}")


def _ms(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
