"""One benchmark of the overhead, from its options to its report."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from re4.benchmarks.common.cores import two_cores
from re4.benchmarks.common.machine import describe_machine_alone
from re4.benchmarks.common.steadiness import in_words
from re4.benchmarks.load_generator.requests import BundleIds, Histories, generated_histories, real_histories
from re4.benchmarks.overhead.measure import NUM_CALLERS, NUM_USERS, bare, measure_bare, null, server
from re4.benchmarks.overhead.report import SCHEMA_VERSION, Pair, Round, render_markdown, summary
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.manifest import Manifest
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest
from re4.common.console import progress
from re4.common.errors import Re4Error
from re4.common.files import replacing, write_json


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and on what."""

    bundles: Path
    data: Path | None
    """Prepared data set with real histories."""
    against: Path | None
    """Bundle directory to compare with."""
    num_rounds: int
    seconds: float
    """Of each part of a round."""
    num_candidates: int
    device: str
    """As for `re4 serve`."""
    seed: int
    command: str
    """What the person typed."""


def run(plan: Plan, out: Path) -> dict[str, Any]:
    """Measure and write the report's files into `out`; gives the report.

    Raises:
        Re4Error: nothing could be measured, or a server failed.
    """
    cores = two_cores()
    machine = describe_machine_alone()
    load_before = os.getloadavg()[0]
    version = live_version(plan.bundles)
    manifest = read_manifest(version)
    histories = _histories(plan, version, manifest)
    payloads = histories.payloads(num_candidates=plan.num_candidates, exclude_history=False)
    other = None if plan.against is None else read_manifest(live_version(plan.against))
    rounds: list[Round] = []
    pairs: list[Pair] = []
    if plan.against is None:
        rounds = _rounds(plan, version, payloads, cores)
    else:
        pairs = _pairs(plan, plan.against, payloads, cores)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": plan.command,
        "machine": machine,
        "bundle": _described(manifest),
        "against": None if other is None else _described(other),
        **summary(rounds, pairs),
        "conditions": {
            "machine": machine["cpu_model"],
            "device": plan.device,
            "server_on_core": cores[0],
            "caller_on_core": cores[1],
            "items": f"{manifest.items.num_items:,} of width {manifest.model.embedding_dim}",
            "index": f"{manifest.index.factory or manifest.index.kind} {manifest.index.search_parameters}",
            "recall": manifest.index.recall,
            "requests": histories.source,
            "candidates": plan.num_candidates,
            "saturating_callers": NUM_CALLERS,
            "users_of_a_batch": NUM_USERS,
            "seconds_of_a_part": plan.seconds,
            "rounds": plan.num_rounds,
            "machine_alone": in_words(machine["steadiness"]),
            "load_average": f"{load_before:.2f} before, {os.getloadavg()[0]:.2f} after",
        },
    }
    _write(report, out)
    return report


def _rounds(plan: Plan, version: Path, payloads: list[bytes], cores: tuple[int, int]) -> list[Round]:
    with ExitStack() as stack:
        pipeline = stack.enter_context(bare(version, payloads, cores, plan.device))
        subject, reply = stack.enter_context(server(plan.bundles, payloads, cores, plan.device))
        empty = stack.enter_context(null(reply, payloads, cores))
        rounds = []
        # The first round warms up: pages, caches and connections.
        with progress("rounds", plan.num_rounds + 1) as bar:
            for _ in range(plan.num_rounds + 1):
                rounds.append(
                    Round(
                        bare=measure_bare(pipeline, plan.seconds),
                        null=empty.measure(plan.seconds),
                        served=subject.measure(plan.seconds),
                    )
                )
                bar.advance()
    return rounds[1:]


def _pairs(plan: Plan, against: Path, payloads: list[bytes], cores: tuple[int, int]) -> list[Pair]:
    with ExitStack() as stack:
        ours, _ = stack.enter_context(server(plan.bundles, payloads, cores, plan.device))
        theirs, _ = stack.enter_context(server(against, payloads, cores, plan.device))
        pairs = []
        with progress("pairs", plan.num_rounds + 1) as bar:
            for number in range(plan.num_rounds + 1):
                if number % 2:  # who goes first takes turns
                    first = ours.measure(plan.seconds)
                    pairs.append(Pair(served=first, against=theirs.measure(plan.seconds)))
                else:
                    first = theirs.measure(plan.seconds)
                    pairs.append(Pair(served=ours.measure(plan.seconds), against=first))
                bar.advance()
    return pairs[1:]


def _histories(plan: Plan, version: Path, manifest: Manifest) -> Histories:
    max_length = manifest.model.max_history_length
    if plan.data is not None:
        return real_histories(plan.data, max_length=max_length, seed=plan.seed)
    items = manifest.items
    lookup = ItemIds.open(version, items.id_kind, items.num_items)
    return generated_histories(BundleIds(lookup, items.num_items), max_length=max_length, seed=plan.seed)


def _described(manifest: Manifest) -> dict[str, Any]:
    fields = {"version", "created_at", "model", "index", "items"}
    described: dict[str, Any] = manifest.model_dump(mode="json", include=fields)
    return described


def _write(report: dict[str, Any], out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "report.json", report)
        with replacing(out / "report.md") as part:
            part.write_text(render_markdown(report), encoding="utf-8")
    except OSError as error:
        raise Re4Error(f"the report cannot be written to {out}: {error}") from None
