"""The report of `re4 bench peers` as a page: the comparison, then all figures, then the commands."""

import math
from collections.abc import Mapping
from typing import Any

from re4.benchmarks.common.cpu_stability import in_words
from re4.benchmarks.common.report import join_parts, number, page_list, page_table, with_half_width
from re4.benchmarks.peers.comparison import figures_of
from re4.benchmarks.peers.measure import LOADS
from re4.benchmarks.peers.systems import OURS
from re4.benchmarks.serve.markdown import (
    load_table,
    machine_in_words,
    status_line,
    timing_in_words,
    versions_in_words,
)


def render_markdown(report: Mapping[str, Any]) -> str:
    """Return the page of a report, which is the JSON object."""
    terms = report["terms"]
    skipped = "\n".join(
        f"- {part['title']}: {str(part['skipped']).strip().splitlines()[-1]}" for part in report["skipped"]
    )
    measured = [*report["systems"], *([report["in_turns"]] if report["in_turns"] else [])]
    commands = list(dict.fromkeys(part["command"] for part in measured)) or [report["command"]]
    return join_parts(
        [
            f"# Serving {report['bundle']['items']['num_items']:,} items: a comparison of systems",
            status_line(report),
            first_paragraph(report),
            "![99th percentile against load, all systems](report.png)" if report["systems"] else "",
            "## Systems\n\n*Sustained* is the highest rate, open loop, at which 99 % of all calls take at "
            f"most {terms['p99_ms']:g} ms; ± is half of the 95 % interval of the mean over "
            f"{terms['num_runs']} runs. Latencies are of that rate; *lone* is the median of a client that "
            "waits for each answer, *saturated* the rate of 64 such clients, and *CPU* the server's CPU "
            "time for one of those answers, which other work on the machine hardly changes. Memory that "
            "processes share is divided among them.",
            _systems(report),
            _interleaved(report["in_turns"]),
            f"## Skipped\n\n{skipped}" if skipped else "",
            "## Loads",
            load_table(
                (f"{part['title']}, {part['setting']}", point)
                for part in report["systems"]
                for point in part["points"]
            ),
            "## Conditions",
            _conditions(report),
            "## Again\n\nmake peers, then\n\n```\n" + "\n".join(commands) + "\n```",
        ]
    )


def first_paragraph(report: Mapping[str, Any]) -> str:
    """Return the comparison in words, by sweeps and by interleaved rounds, where either was measured."""
    return " ".join(filter(None, [headline(report), _interleaved_headline(report)]))


def headline(report: Mapping[str, Any]) -> str:
    """Return the comparison by sweeps: by how much ours is ahead, and where a peer is ahead of ours."""
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


def _interleaved_headline(report: Mapping[str, Any]) -> str:
    """Return ours as a multiple of each peer at its better setting."""
    least: dict[str, tuple[float, str]] = {}
    for one in (report["in_turns"] or {"settings": []})["settings"]:
        ratio = (one["ours_is_times"] or {}).get("saturation", {}).get("answers_per_s")
        if ratio and ratio["mean"] < least.get(one["system"], (math.inf, ""))[0]:
            text = f"**{ratio['mean']:.1f} ×** {one['title']} ({one['setting']})"
            least[one["system"]] = ratio["mean"], text
    if not least:
        return ""
    texts = ", ".join(text for _, text in least.values())
    return f"Saturated, interleaved, Re4 Retrieval answers {texts}."


def _systems(report: Mapping[str, Any]) -> str:
    rows = []
    for part in report["systems"]:
        one = figures_of(part)
        sustained, memory = one["sustained_per_s"], one["server_memory_bytes"]
        least = "≥ " if one["is_client_limited"] else ""
        rows.append(
            [
                one["title"],
                one["setting"],
                "none" if sustained is None else least + with_half_width(sustained, 0),
                number(one["p50_ms"]),
                number(one["p99_ms"]),
                number(one["lone_p50_ms"], 2),
                number(one["saturated_per_s"], 0),
                f"{one['recall']:.4f}",
                number(one["server_cpu_us"], 0),
                number(memory and memory / 2**20, 0),
                number(part["client_ceiling_per_s"], 0),
            ]
        )
    columns = ["system", "setting", "sustained/s", "p50, ms", "p99, ms", "lone, ms", "saturated/s", "recall"]
    return page_table([*columns, "CPU, µs", "server MiB", "client's ceiling/s"], rows)


def _interleaved(rounds: Mapping[str, Any] | None) -> str:
    if rounds is None:
        return ""
    rows = []
    for one in rounds["settings"]:
        by_purpose = {point["purpose"]: point for point in one["points"]}
        if len(by_purpose) < len(LOADS):
            continue
        times = one["ours_is_times"] or {purpose: {} for purpose in LOADS}
        rows.append(
            [
                one["title"],
                one["setting"],
                number(by_purpose["saturation"]["achieved_per_s"]["mean"], 0),
                _times(times["saturation"].get("answers_per_s")),
                _times(times["saturation"].get("server_cpu_us_an_answer")),
                number(by_purpose["lone caller"]["latency_ms"]["p50"]["pooled"], 2),
                _times(times["lone caller"].get("p50_ms")),
            ]
        )
    columns = ["system", "setting", "saturated/s", "ours is ×", "CPU an answer: ours is ×", "lone p50, ms"]
    return (
        f"## Interleaved\n\n{rounds['num_rounds']} rounds with all systems up, each saturated by 64 "
        "clients and called by one. Ratios are computed within a round, with the 95 % interval over the "
        "rounds in brackets: whatever slows the machine for minutes slows all alike. The machine's CPUs "
        f"before: {in_words(rounds['steadiness_before'])}.\n\n" + page_table([*columns, "ours is ×"], rows)
    )


def _times(ratio: Mapping[str, float | None] | None) -> str:
    if ratio is None:
        return "–"
    low, high = ratio["low"], ratio["high"]
    return f"{ratio['mean']:.2f}" + ("" if low is None or high is None else f" ({low:.2f}–{high:.2f})")


def _conditions(report: Mapping[str, Any]) -> str:
    bundle, terms = report["bundle"], report["terms"]
    facts = {
        "Machine": machine_in_words(report["machine"]),
        "Cores": f"server, with all its processes, on core {terms['cores'][0]}; client on core "
        f"{terms['cores'][1]}",
        "Bundle": f"{bundle['version']}: {bundle['items']['num_items']:,} items, "
        f"{bundle['model']['num_interests']} interests of {bundle['model']['embedding_dim']} dimensions, "
        f"index {bundle['index']['factory']} {bundle['index']['search_parameters']}",
        "Requests": f"{terms['requests']}; {terms['num_candidates']} candidates",
        "Each run": timing_in_words(terms["timing"]),
        "Versions of ours": versions_in_words(report["machine"]),
    }
    for part in report["systems"]:
        built = ", ".join(
            f"{name} {value:,.0f}" if isinstance(value, int | float) else f"{name} {value}"
            for name, value in part["built"].items()
        )
        texts = [
            part["how"],
            f"called by {part['client']}",
            f"search effort {part['effort']}" if part["effort"] else "",
            built,
            f"measured {part['created_at']}, load average before {part['load_average_before']:.2f}",
            f"the machine's CPUs before: {in_words(part['steadiness_before'])}",
        ]
        facts[f"{part['title']}, {part['setting']}"] = "; ".join(filter(None, texts))
    return page_list(facts)
