"""Who is ahead, and by how much: each system at its better setting, by rate, lone call and memory."""

from collections.abc import Mapping
from typing import Any, Final

OURS: Final = "re4"


def figures_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures of a setting that are compared; None where it has none."""
    by_purpose = {point["purpose"]: point for point in part["points"]}
    knee, lone, saturated = part["knee"], by_purpose.get("lone caller"), by_purpose.get("saturation")
    at_knee = next(
        (
            point
            for point in part["points"]
            if knee and point["purpose"] == "measured" and point.get("rate_per_s") == knee["rate_per_s"]
        ),
        None,
    )
    usage = (at_knee or {}).get("server_usage") or {}
    return {
        "system": part["system"],
        "title": part["title"],
        "setting": part["setting"],
        "recall": part["recall"]["mean"],
        "sustained_per_s": at_knee["achieved_per_s"] if at_knee else None,
        "is_client_limited": bool(knee and knee["is_client_limited"]),
        "p50_ms": at_knee["latency_ms"]["p50"]["pooled"] if at_knee else None,
        "p99_ms": at_knee["latency_ms"]["p99"]["pooled"] if at_knee else None,
        "lone_p50_ms": lone["latency_ms"]["p50"]["pooled"] if lone else None,
        "saturated_per_s": saturated["achieved_per_s"]["mean"] if saturated else None,
        "server_cpu_us": _cpu_us(saturated),
        "server_memory_bytes": usage.get("max_memory_bytes"),
        "server_cores": usage.get("mean_cores"),
    }


def _cpu_us(saturated: Mapping[str, Any] | None) -> float | None:
    """Processor time of the server for one answer, where its callers never let it rest."""
    if not saturated or not saturated["server_usage"] or not saturated["achieved_per_s"]["mean"]:
        return None
    cores: float = saturated["server_usage"]["mean_cores"]
    return 1e6 * cores / float(saturated["achieved_per_s"]["mean"])


def compare(report: Mapping[str, Any]) -> dict[str, Any]:
    """The better setting of each system, ratios to ours, and where a peer is ahead.

    A setting counts only where its recall is enough and something was sustained.
    """
    best: dict[str, dict[str, Any]] = {}
    for part in report["systems"]:
        found = figures_of(part)
        if found["sustained_per_s"] is None or found["recall"] < report["terms"]["min_recall"]:
            continue
        before = best.get(found["system"])
        if before is None or _rate(found) > _rate(before):
            best[found["system"]] = found
    ours, limit = best.get(OURS), report["in_process"]
    if ours is None:
        return {"best": list(best.values()), "share_of_in_process": None, "ahead": []}
    peers = [found for name, found in best.items() if name != OURS]
    for found in peers:
        found["ours_is_times"] = _rate(ours) / _rate(found)
    return {
        "best": list(best.values()),
        "share_of_in_process": _rate(ours) / limit["per_s"] if limit else None,
        "ahead": [text for peer in _all_of(report, peers) for text in _ahead(ours, peer)],
    }


def _all_of(report: Mapping[str, Any], peers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every setting of the peers: one that is slower under load may be faster for a lone caller."""
    names = {peer["system"] for peer in peers}
    return [figures_of(part) for part in report["systems"] if part["system"] in names]


def _ahead(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> list[str]:
    name, found = f"{peer['title']} ({peer['setting']})", []
    if peer["sustained_per_s"] and _rate(peer) > _rate(ours):
        found.append(f"{name} sustains {_rate(peer):,.0f}/s, ours {_rate(ours):,.0f}/s")
    for key, text, unit, scale in (
        ("lone_p50_ms", "answers a lone caller in", "ms", 1.0),
        ("server_memory_bytes", "takes", "MiB of memory", 2.0**-20),
    ):
        if peer[key] is not None and ours[key] is not None and peer[key] < ours[key]:
            values = [f"{one[key] * scale:,.{2 if unit == 'ms' else 0}f}" for one in (peer, ours)]
            found.append(f"{name} {text} {values[0]} {unit}, ours {values[1]}")
    return found


def _rate(found: Mapping[str, Any]) -> float:
    rate: float = found["sustained_per_s"]["mean"]
    return rate
