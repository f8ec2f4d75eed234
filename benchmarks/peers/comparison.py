"""The comparison of systems, each at its better setting, by rate, lone call and memory."""

from collections.abc import Mapping
from typing import Any, Final

from re4.benchmarks.peers.systems import OURS

_MISSING: Final[Mapping[str, Any]] = {
    "achieved_per_s": None,
    "latency_ms": {name: {"pooled": None} for name in ("p50", "p99")},
    "server_usage": None,
}


def figures_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a setting that are compared; None where it has none."""
    by_purpose = {point["purpose"]: point for point in part["points"]}
    lone, saturated = (by_purpose.get(purpose, _MISSING) for purpose in ("lone caller", "saturation"))
    knee = part["knee"] or {"rate_per_s": None, "is_client_limited": False}
    measured = [point for point in part["points"] if point["purpose"] == "measured"]
    at_knee = next((each for each in measured if each.get("rate_per_s") == knee["rate_per_s"]), _MISSING)
    usage, saturated_usage = at_knee["server_usage"] or {}, saturated["server_usage"]
    saturated_per_s = saturated["achieved_per_s"] and saturated["achieved_per_s"]["mean"]
    return {
        "system": part["system"],
        "title": part["title"],
        "setting": part["setting"],
        "recall": part["recall"]["mean"],
        "sustained_per_s": at_knee["achieved_per_s"],
        "is_client_limited": bool(knee["is_client_limited"]),
        "p50_ms": at_knee["latency_ms"]["p50"]["pooled"],
        "p99_ms": at_knee["latency_ms"]["p99"]["pooled"],
        "lone_p50_ms": lone["latency_ms"]["p50"]["pooled"],
        "saturated_per_s": saturated_per_s,
        "server_cpu_us": 1e6 * saturated_usage["mean_cores"] / saturated_per_s
        if saturated_usage and saturated_per_s
        else None,
        "server_memory_bytes": usage.get("max_memory_bytes"),
        "server_cores": usage.get("mean_cores"),
    }


def compare(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the better setting of each system, ratios to ours, and where a peer is ahead.

    A setting counts only where its recall is enough and something was sustained.
    """
    settings = [figures_of(part) for part in report["systems"]]
    best: dict[str, dict[str, Any]] = {}
    for found in settings:
        if found["sustained_per_s"] is None or found["recall"] < report["terms"]["min_recall"]:
            continue
        before = best.get(found["system"])
        if before is None or _rate(found) > _rate(before):
            best[found["system"]] = found
    ours, pipeline = best.get(OURS), report["in_process"]
    if ours is None:
        return {"best": list(best.values()), "share_of_in_process": None, "ahead": []}
    for name, found in best.items():
        if name != OURS:
            found["ours_is_times"] = _rate(ours) / _rate(found)
    return {
        "best": list(best.values()),
        "share_of_in_process": _rate(ours) / pipeline["per_s"] if pipeline else None,
        # Every setting of these peers: one that is slower under load may be faster for a lone client.
        "ahead": [
            text
            for found in settings
            if found["system"] in best and found["system"] != OURS
            for text in _ahead(ours, found)
        ],
    }


def _ahead(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> list[str]:
    name, found = f"{peer['title']} ({peer['setting']})", []
    if peer["sustained_per_s"] and _rate(peer) > _rate(ours):
        found.append(f"{name} sustains {_rate(peer):,.0f}/s, ours {_rate(ours):,.0f}/s")
    for key, text, unit, scale, digits in (
        ("lone_p50_ms", "answers a lone client in", "ms", 1.0, 2),
        ("server_memory_bytes", "takes", "MiB of memory", 2.0**-20, 0),
    ):
        if peer[key] is not None and ours[key] is not None and peer[key] < ours[key]:
            theirs, own = (f"{one[key] * scale:,.{digits}f}" for one in (peer, ours))
            found.append(f"{name} {text} {theirs} {unit}, ours {own}")
    return found


def _rate(found: Mapping[str, Any]) -> float:
    rate: float = found["sustained_per_s"]["mean"]
    return rate
