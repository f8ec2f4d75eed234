"""The report of `re4 bench scale` as a page."""

import json
from typing import Any

from re4.benchmarks.common.report import join_parts, page_table


def render_markdown(report: dict[str, Any]) -> str:
    """Return the page of a report, which is the JSON object."""
    machine, index, num_items = report["machine"], report["index"], report["num_items"]
    settings = ", ".join(f"{name} {value:g}" for name, value in index["search_parameters"].items())
    memory = machine["memory_bytes"] / (1 << 30)
    parts = [
        f"# {num_items:,} items, D = {report['embedding_dim']}",
        f"{report['created_at']}, `{report['command']}`",
        f"{machine['cpu_model']}, {machine['num_usable_cpus']} CPUs, {memory:.0f} GiB of memory; load "
        f"average at the start {machine['load_average_at_start'][0]:.1f}. {_packages(machine)}.",
        f"Index **{index['factory']}** ({index['kind']}), searched with {settings or 'nothing to set'}. "
        f"Recall of {index['num_candidates']} merged candidates: **{index['recall']:.4f}** on the "
        f"{index['num_queries']} requests that judged the tuning, **{report['served_recall']:.4f}** on "
        f"{report['num_fresh_requests']} others as the published version answers them.",
        "Gates of a rebuild against this very version: "
        + ", ".join(f"{name} {figure:.4f}" for name, figure in report["gates"].items())
        + ".",
        "## Stages",
        "Own memory is anonymous pages, which no other process can use. Resident memory also has the pages "
        "of mapped files, which the kernel may take back at any time. A job that is stopped for a while "
        "takes more seconds, but not more CPU seconds.",
        page_table(
            ["stage", "seconds", "CPU seconds", "peak own GiB", "peak resident GiB"],
            [
                [
                    stage["name"],
                    f"{stage['seconds']:.1f}",
                    f"{stage['processor_seconds']:.1f}",
                    _gib(stage["peak_own_bytes"]),
                    _gib(stage["peak_resident_bytes"]),
                ]
                for stage in report["stages"]
            ],
        ),
        "## Files",
        page_table(
            ["file", "bytes", "bytes an item"],
            [
                [name, f"{size:,}", f"{size / num_items:.1f}"]
                for name, size in [*report["files"].items(), ("all", sum(report["files"].values()))]
            ],
        ),
        "## Reading it",
        "Two processes, each on one thread; the second loads the version while the first still holds it. "
        "`first` requests read pages that the process has not touched before, `warm` ones are the same "
        "again.",
        *(_reader(number, reader) for number, reader in enumerate(report["readers"], start=1)),
    ]
    return join_parts(parts)


def _reader(number: int, reader: dict[str, Any]) -> str:
    memory, ids = reader["memory"], reader["ids"]
    rows = [
        [name, f"{facts['num_requests']:,}"]
        + [f"{facts[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms", "mean_search_ms")]
        + [f"{facts['requests_per_s']:,.0f}"]
        for name, facts in reader["requests"].items()
    ]
    grew = memory["loaded"]["own_bytes"] - memory["before"]["own_bytes"]
    after = memory["after_ids"]
    return (
        f"**Process {number}** loaded it in {reader['load_s']:.2f} s, taking {_gib(grew)} GiB of its own. "
        f"At the end it held {_gib(after['own_bytes'])} GiB of its own and {_gib(after['mapped_bytes'])} GiB "
        f"mapped; {_gib(after['shared_bytes'])} GiB of all that was shared with another process.\n\n"
        + page_table(["requests", "number", "p50 ms", "p90 ms", "p99 ms", "search ms", "requests/s"], rows)
        + f"\n\nIds: mapped in {ids['open_ms']:.2f} ms; a second, first and warm: rows to ids "
        f"{ids['first_rows_to_ids_per_s']:,.0f} and {ids['warm_rows_to_ids_per_s']:,.0f}, ids to rows "
        f"{ids['first_ids_to_rows_per_s']:,.0f} and {ids['warm_ids_to_rows_per_s']:,.0f}."
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f}"


def _packages(machine: dict[str, Any]) -> str:
    return json.dumps(machine["packages"])[1:-1].replace('"', "").replace(":", "")
