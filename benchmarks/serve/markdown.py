"""The report of `re4 bench serve` as a page: the finding, then all figures, then the command."""

from collections.abc import Iterable, Mapping
from typing import Any

from re4.benchmarks.common.cpu_stability import in_words
from re4.benchmarks.common.report import join_parts, number, page_list, page_table, with_half_width
from re4.benchmarks.load_generator.call_stats import ELSEWHERE
from re4.benchmarks.load_generator.transport import STAGES
from re4.benchmarks.serve.report import PERCENTILES


def render_markdown(report: Mapping[str, Any]) -> str:
    """Return the page of a report, which is the JSON object."""
    return join_parts(
        [
            "# Serving latency",
            status_line(report),
            _headline(report),
            f"![Latency against load, percentiles, stages]({report['picture']})" if report["picture"] else "",
            "## Loads",
            "Latency in milliseconds over all calls of all runs. Failed calls count as slower than any "
            "answer: a percentile that falls among them is `failed`. ± is half of the 95 % interval of the "
            "mean over runs. Lag is the lateness of the client's own sending, at the 99th percentile; it "
            "is part of the latency.",
            load_table((None, point) for point in report["points"]),
            _comparison(report["against"]),
            "## Where the time goes",
            "Microseconds, mean over answered calls: the server's stage times from its replies, and the rest "
            "(network, gRPC on both sides, waiting to be sent).",
            _stage_table(report),
            "## Conditions",
            _conditions(report),
            f"## Again\n\n```\n{report['command']}\n```",
        ]
    )


def status_line(report: Mapping[str, Any]) -> str:
    """Return the warning of a report that is not complete."""
    if report["status"] == "complete":
        return ""
    return f"**{str(report['status']).upper()} REPORT: {report['status_reason']}.**"


def load_table(points: Iterable[tuple[str | None, Mapping[str, Any]]]) -> str:
    """Return the figures of loads, each with the name of the system where there are several."""
    rows, is_named = [], False
    for name, point in points:
        is_named = is_named or name is not None
        rows.append(
            [
                *([] if name is None else [name]),
                f"{point['label']}, {point['loop']} loop",
                point["purpose"] + (" (client-limited)" if point["client_limit"] else ""),
                str(point["num_runs"]),
                with_half_width(point["offered_per_s"]),
                with_half_width(point["achieved_per_s"]),
                *(_latency(point["latency_ms"][each]) for each in PERCENTILES),
                number(point["max_answered_ms"]),
                number(point["client_lag_ms"]["p99"]),
                number(point["batch_size"]["mean"]),
                f"{point['num_calls']:,}",
                ", ".join(f"{code} {count:,}" for code, count in point["failures"].items()) or "0",
            ]
        )
    columns = ["load", "for", "runs", "offered/s", "achieved/s", *PERCENTILES, "max", "lag", "batch"]
    return page_table([*(["system"] if is_named else []), *columns, "calls", "failed"], rows)


def machine_in_words(machine: Mapping[str, Any]) -> str:
    """Return the client's machine in a line."""
    return (
        f"{machine['cpu_model']}, {machine['num_usable_cpus']} CPUs, {machine['memory_bytes'] / 2**30:.0f} "
        f"GiB, {machine['system']}, Python {machine['python']}, load average at start "
        f"{machine['load_average_at_start'][0]:.1f}"
    )


def versions_in_words(machine: Mapping[str, Any]) -> str:
    """Return the packages' versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in machine["packages"].items())


def _headline(report: Mapping[str, Any]) -> str:
    measured = [point for point in report["points"] if point["purpose"] == "measured" and point["num_runs"]]
    begin = end = ""
    if (knee := report["knee"]) is not None:
        if knee["rate_per_s"] is None:
            return f"No knee: {knee['reason']}."
        measured = [point for point in measured if point.get("rate_per_s") == knee["rate_per_s"]]
        begin = f"Highest rate with a 99th percentile of at most {knee['p99_objective_ms']:g} ms: "
        end = f" ({knee['reason']})"
    if not measured or measured[-1]["achieved_per_s"] is None:
        return ""
    point = measured[-1]
    p50, p99 = (_latency(point["latency_ms"][name]) for name in ("p50", "p99"))
    closed = (
        " **Closed loop**: clients wait for their answers, so pauses of the server hardly show; "
        "do not compare with open-loop figures."
    )
    return (
        f"{begin}**{point['label']}**{end}: {point['achieved_per_s']['mean']:,.1f} answers per second, "
        f"p50 {p50} and p99 {p99} in ms{_recall(report)}.{closed if point['loop'] == 'closed' else ''}"
    )


def _comparison(other: Mapping[str, Any] | None) -> str:
    if other is None:
        return ""
    info = other["server"]["info"]
    rows = [
        [
            name.replace("_", " "),
            number(ratio and ratio["mean"], 3),
            "–" if ratio is None or ratio["low"] is None else f"{ratio['low']:.3f} to {ratio['high']:.3f}",
        ]
        for name, ratio in other["ratios"].items()
    ]
    return (
        f"## Against version {info['version']}, at {other['server']['address']}\n\n"
        f"{info['num_items']:,} items, index {info['index']}{_recall(other)}. The same load, interleaved; a "
        "ratio is the other server's figure as a multiple of this one's, computed within its pair, with the "
        "95 % interval of the mean over pairs.\n\n"
        + page_table(["figure", "ratio", "95 %"], rows)
        + "\n\n"
        + load_table((None, point) for point in other["points"])
    )


def _recall(report: Mapping[str, Any]) -> str:
    recall = report["recall"]
    return f", recall {recall['mean']:.4f}" if recall and "mean" in recall else ""


def _stage_table(report: Mapping[str, Any]) -> str:
    stages = (*STAGES, ELSEWHERE)
    rows = [
        [
            point["label"],
            *(number(point["stages_us"][stage]["mean"], 0) for stage in stages),
            number(point["batch_size"]["mean"]),
            *(_usage(point[f"{side}_usage"]) for side in ("server", "client")),
        ]
        for point in report["points"]
    ]
    return page_table(["load", *stages, "batch size", "server", "client"], rows)


def _conditions(report: Mapping[str, Any]) -> str:
    machine, info, client = report["machine"], report["server"]["info"], report["client"]
    requests, timing, recall = report["requests"], report["timing"], report["recall"]
    if recall is None:
        recalled = "not measured: no bundle was given"
    elif "mean" in recall:
        recalled = (
            f"{recall['mean']:.4f} at {recall['num_candidates']} candidates (lowest {recall['min']:.4f}, "
            f"{recall['num_requests']} of the requests, against exact search)"
        )
    else:
        recalled = f"not measured: {recall['problem']}"
    return page_list(
        {
            "Server": f"{report['server']['address']}, version {info['version']}, {info['model']}, "
            f"{info['num_items']:,} items, {info['num_interests']} interests of {info['embedding_dim']} "
            f"dimensions, index {info['index']}, {info['num_processes']} processes, "
            f"server {info['server_version']}",
            "Recall": recalled,
            "Requests": f"{requests['num_different']:,} different, {requests['source']}; "
            f"{requests['num_candidates']} candidates",
            "Each run": timing_in_words(timing),
            "Client": f"{client['num_workers']} processes with {client['num_channels']} connections each; "
            f"{client['ceiling_per_s']:,.0f} calls/s against a null server on this machine, so at most "
            f"{client['max_rate_per_s']:,.0f}/s are offered",
            "Machine of the client": machine_in_words(machine),
            "Its CPUs before the server started": in_words(machine["steadiness"]),
            "Versions": versions_in_words(machine),
            "CPU flags": " ".join(machine["cpu_flags"]),
        }
    )


def timing_in_words(timing: Mapping[str, float]) -> str:
    """Return the duration of a run in a line."""
    return (
        f"{timing['warmup_s']:g} s warm-up, {timing['duration_s']:g} s counted, deadline "
        f"{timing['deadline_s']:g} s"
    )


def _latency(figure: Mapping[str, float | None]) -> str:
    if figure["pooled"] is None:
        return "failed"
    high, mean = figure.get("high"), figure.get("mean")
    return f"{figure['pooled']:.1f}" + ("" if high is None or mean is None else f" ±{high - mean:,.1f}")


def _usage(usage: Mapping[str, float] | None) -> str:
    if usage is None:
        return "–"
    return f"{usage['mean_cores']:.2f} cores, {usage['max_memory_bytes'] / 2**20:,.0f} MiB"
