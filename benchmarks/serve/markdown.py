"""A report as text: what was found first, then every figure behind it, then how to get it again."""

from collections.abc import Mapping, Sequence
from typing import Any

from re4.benchmarks.common.markdown_table import page_table
from re4.benchmarks.common.steadiness import in_words
from re4.benchmarks.load_generator.transport import STAGES


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report's Markdown. `report` is the JSON object."""
    parts = [
        "# Serving latency",
        _status(report),
        _headline(report),
        f"![Latency against load, percentiles, stages]({report['picture']})" if report["picture"] else "",
        "## Loads\n\nLatency in milliseconds over all calls of all runs; failed calls count as slower than "
        "any answer, so a percentile that falls among them is `failed`. ± is half of the 95 % interval of "
        "the mean over runs. Lag is how late the client itself sent, at the 99th percentile; it is part "
        "of the latency.\n\n" + _load_table(report["points"]),
        _against(report),
        "## Where the time goes\n\nMicroseconds, mean over answered calls: the server's stage times from its "
        "replies, and the rest (network, gRPC on both sides, waiting to be sent).\n\n"
        + _stage_table(report["points"]),
        "## Conditions\n\n" + _conditions(report),
        f"## Again\n\n```\n{report['command']}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _status(report: Mapping[str, Any]) -> str:
    if report["status"] == "complete":
        return ""
    return f"**{str(report['status']).upper()} REPORT: {report['status_reason']}.**"


def _headline(report: Mapping[str, Any]) -> str:
    measured = [point for point in report["points"] if point["purpose"] == "measured" and point["num_runs"]]
    if report["knee"] is not None:
        knee = report["knee"]
        if knee["rate_per_s"] is None:
            return f"No knee: {knee['reason']}."
        measured = [point for point in measured if point.get("rate_per_s") == knee["rate_per_s"]]
        begin = f"Highest rate with a 99th percentile of at most {knee['p99_objective_ms']:g} ms: "
        end = f" ({knee['reason']})"
    else:
        begin, end = "", ""
    if not measured:
        return ""
    point = measured[-1]
    closed = (
        " **Closed loop**: callers wait for their answers, so pauses of the server hardly show; "
        "do not compare with open-loop figures."
        if point["loop"] == "closed"
        else ""
    )
    rate, latency = point["achieved_per_s"], point["latency_ms"]
    if rate is None:
        return ""
    recall = report["recall"]
    at_recall = f", recall {recall['mean']:.4f}" if recall and "mean" in recall else ""
    return (
        f"{begin}**{point['label']}**{end}: {rate['mean']:,.1f} answers per second, "
        f"p50 {_in_words(latency['p50'])}, p99 {_in_words(latency['p99'])}{at_recall}.{closed}"
    )


def _against(report: Mapping[str, Any]) -> str:
    """The comparison with another server, where there was one."""
    found = report["against"]
    if found is None:
        return ""
    info, recall = found["server"]["info"], found["recall"]
    recalled = f", recall {recall['mean']:.4f}" if recall and "mean" in recall else ""
    rows = [
        [name.replace("_", " "), "–", "–"]
        if ratio is None
        else [
            name.replace("_", " "),
            f"{ratio['mean']:.3f}",
            "–" if ratio["low"] is None else f"{ratio['low']:.3f} to {ratio['high']:.3f}",
        ]
        for name, ratio in found["ratios"].items()
    ]
    return (
        f"## Against version {info['version']}, at {found['server']['address']}\n\n"
        f"{info['num_items']:,} items, index {info['index']}{recalled}. The same load in turns; a ratio is "
        "the other server's figure as a multiple of this one's, computed within its pair, with the 95 % "
        "interval of the mean over pairs.\n\n"
        + "\n\n".join([page_table(["figure", "ratio", "95 %"], rows), _load_table(found["points"])])
    )


def _load_table(points: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{point['label']}, {point['loop']} loop",
            point["purpose"] + (" (client-limited)" if point["client_limit"] else ""),
            str(point["num_runs"]),
            _number(point["offered_per_s"]),
            _number(point["achieved_per_s"]),
            *(_cell(point["latency_ms"][name]) for name in ("p50", "p90", "p99", "p99.9")),
            "–" if point["max_answered_ms"] is None else f"{point['max_answered_ms']:.1f}",
            "–" if point["client_lag_ms"]["p99"] is None else f"{point['client_lag_ms']['p99']:.1f}",
            f"{point['num_calls']:,}",
            ", ".join(f"{code} {count:,}" for code, count in point["failures"].items()) or "0",
        ]
        for point in points
    ]
    columns = ["load", "for", "runs", "offered/s", "achieved/s"]
    return page_table([*columns, "p50", "p90", "p99", "p99.9", "max", "lag", "calls", "failed"], rows)


def _stage_table(points: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            point["label"],
            *(_mean(point["stages_us"][stage]) for stage in (*STAGES, "elsewhere")),
            _mean(point["batch_size"], digits=1),
            _used(point["server_usage"]),
            _used(point["client_usage"]),
        ]
        for point in points
    ]
    return page_table(["load", *STAGES, "elsewhere", "batch size", "server", "client"], rows)


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
    facts = {
        "Server": f"{report['server']['address']}, version {info['version']}, {info['model']}, "
        f"{info['num_items']:,} items, {info['num_interests']} interests of {info['embedding_dim']} "
        f"dimensions, index {info['index']}, {info['num_processes']} processes, "
        f"server {info['server_version']}",
        "Recall": recalled,
        "Requests": f"{requests['num_different']:,} different, {requests['source']}; "
        f"{requests['num_candidates']} candidates",
        "Each run": f"{timing['warmup_s']:g} s warm-up, {timing['duration_s']:g} s counted, "
        f"deadline {timing['deadline_s']:g} s",
        "Client": f"{client['num_workers']} processes with {client['num_channels']} connections each; "
        f"does {client['ceiling_per_s']:,.0f} calls/s against a null server on this machine, and is asked "
        f"for at most {client['max_rate_per_s']:,.0f}/s",
        "Machine of the client": f"{machine['cpu_model']}, {machine['num_usable_cpus']} processors, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, Python {machine['python']}, "
        f"load average at start {machine['load_average_at_start'][0]:.1f}",
        "That machine alone": in_words(machine["steadiness"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "CPU flags": " ".join(machine["cpu_flags"]),
    }
    return "\n".join(f"- **{name}:** {text}" for name, text in facts.items())


def _in_words(figure: Mapping[str, float | None]) -> str:
    return "among the failed calls" if figure["pooled"] is None else f"{_cell(figure)} ms"


def _cell(figure: Mapping[str, float | None]) -> str:
    if figure["pooled"] is None:
        return "failed"
    return f"{figure['pooled']:.1f}{_half(figure)}"


def _number(figure: Mapping[str, float | None] | None) -> str:
    return "–" if figure is None or figure["mean"] is None else f"{figure['mean']:,.1f}{_half(figure)}"


def _half(figure: Mapping[str, float | None]) -> str:
    high, mean = figure.get("high"), figure.get("mean")
    return "" if high is None or mean is None else f" ±{high - mean:,.1f}"


def _mean(figure: Mapping[str, float | None], *, digits: int = 0) -> str:
    return "–" if figure["mean"] is None else f"{figure['mean']:,.{digits}f}"


def _used(usage: Mapping[str, float] | None) -> str:
    if usage is None:
        return "–"
    return f"{usage['mean_cores']:.2f} cores, {usage['max_memory_bytes'] / 2**20:,.0f} MiB"
