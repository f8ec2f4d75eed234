"""One comparison from its options to its report. It may be done in parts, which a folder holds together.

Every setting's findings are a file of their own, written as soon as they are there; the report is made of all
that the folder holds. Parts must have been measured on the same terms.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from re4.benchmarks.common.cores import on_core
from re4.benchmarks.common.machine import describe_machine
from re4.benchmarks.load_generator.client import INTERRUPTED
from re4.benchmarks.load_generator.requests import real_histories
from re4.benchmarks.overhead.measure import NUM_CALLERS, bare, measure_bare
from re4.benchmarks.peers.comparison import compare
from re4.benchmarks.peers.markdown import render_markdown
from re4.benchmarks.peers.measure import Terms, choose_effort, measure
from re4.benchmarks.peers.ours import Ours
from re4.benchmarks.peers.picture import draw
from re4.benchmarks.peers.services import FastApi, TwoHop
from re4.benchmarks.peers.system import Material, System
from re4.benchmarks.peers.triton import Triton
from re4.benchmarks.peers.truth import Truth
from re4.benchmarks.peers.turns import measure_turns
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest
from re4.common.errors import Re4Error, UsageError
from re4.common.files import replacing, write_json

_log = logging.getLogger(__name__)

SYSTEMS: Final[tuple[System, ...]] = (Ours(), Triton(), TwoHop(), FastApi())
SCHEMA_VERSION: Final = 1
_PARTS: Final = "parts"
_PREPARED: Final = "prepared"
_TERMS_FILE: Final = "terms.json"
_LIMIT_FILE: Final = "in-process.json"
_TURNS_FILE: Final = "in-turns.json"
_LIMIT_S: Final = 3.0
_LIMIT_WARMUP_S: Final = 1.0
"""For pages and caches."""
_TERMS_OF_PREPARING: Final = ("version", "requests", "num_candidates", "machine", "min_recall", "seed")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare, and on what."""

    bundles: Path
    data: Path
    """Prepared data set with real histories."""
    systems: Sequence[System]
    terms: Terms
    num_candidates: int
    work: Path
    """Folder that peers keep built things in."""
    command: str
    """What the person typed."""
    prepare_only: bool = False
    """Build and tune what the systems need; measure nothing."""
    num_rounds: int | None = None
    """Measure in so many rounds with all systems up, instead of sweeping one after the other."""


def run(plan: Plan, out: Path) -> dict[str, Any]:
    """Measure, and write the report of all that `out` holds by then; gives the report.

    Raises:
        UsageError: `out` holds findings on other terms.
        Re4Error: ours could not be measured.
    """
    version = live_version(plan.bundles)
    manifest = read_manifest(version)
    histories = real_histories(plan.data, max_length=manifest.model.max_history_length, seed=plan.terms.seed)
    material = Material(
        version=version, histories=histories, num_candidates=plan.num_candidates, work=plan.work
    )
    machine = describe_machine()
    parts = out / _PARTS
    for folder in (parts, out / _PREPARED):
        folder.mkdir(parents=True, exist_ok=True)
    on_terms = {
        "version": version.name,
        "requests": histories.source,
        "num_candidates": plan.num_candidates,
        "machine": machine["cpu_model"],
        **json.loads(json.dumps(asdict(plan.terms))),
    }
    kept = {name: on_terms[name] for name in _TERMS_OF_PREPARING}
    _keep_to_terms(out / _PREPARED / _TERMS_FILE, kept)
    if not plan.prepare_only:
        _keep_to_terms(parts / _TERMS_FILE, on_terms)
    try:
        problem = _measure_all(material, plan, parts)
    except KeyboardInterrupt:
        problem = INTERRUPTED
    report = _report(plan, material, machine, parts, on_terms, problem)
    write_json(out / "report.json", report)
    with replacing(out / "report.md") as part_file:
        part_file.write_text(render_markdown(report), encoding="utf-8")
    if report["systems"]:
        with replacing(out / "report.png") as part_file:
            draw(report, part_file)
    return report


def _measure_all(material: Material, plan: Plan, parts: Path) -> str | None:
    """Write a file for each setting; gives why measuring ended early where it did."""
    if not plan.prepare_only:
        _measure_limit(material, plan.terms, parts / _LIMIT_FILE)
    truth = Truth.of(material.version, material.histories.ids, num_candidates=plan.num_candidates)
    if plan.num_rounds is not None and not plan.prepare_only:
        found = _in_turns(material, truth, plan, plan.num_rounds, parts.parent / _PREPARED)
        write_json(parts / _TURNS_FILE, found | {"command": plan.command})
        stopped: str | None = found["stopped"]
        return stopped
    for system in plan.systems:
        for part in _parts_of(system, material, truth, plan, parts.parent / _PREPARED):
            write_json(parts / f"{system.name}-{part['setting']}.json", part)
            if part.get("stopped"):
                return f"{part['title']}, {part['setting']}: {part['stopped']}"
    return None


def _in_turns(material: Material, truth: Truth, plan: Plan, num_rounds: int, folder: Path) -> dict[str, Any]:
    entrants = []
    for system in plan.systems:
        if problem := system.missing():
            _log.info(f"{system.title} is skipped: {problem}")
            continue
        effort = _prepared(system, material, truth, plan.terms, folder)["effort"]
        entrants += [(system, setting, effort) for setting in system.settings]
    return measure_turns(entrants, material, truth, plan.terms, num_rounds=num_rounds)


def _prepared(system: System, material: Material, truth: Truth, terms: Terms, folder: Path) -> dict[str, Any]:
    """What was built for a system and how hard it must search, from an earlier call where there was one."""
    path = folder / f"{system.name}.json"
    if not path.exists():
        built = system.prepare(material)
        write_json(path, {"built": built, "effort": choose_effort(system, material, truth, terms)})
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _parts_of(
    system: System, material: Material, truth: Truth, plan: Plan, folder: Path
) -> Iterator[dict[str, Any]]:
    """Findings of a system's settings, or why there are none."""
    if problem := system.missing():
        _log.info(f"{system.title} is skipped: {problem}")
        yield {"system": system.name, "title": system.title, "setting": "none", "skipped": problem}
        return
    try:
        ready = _prepared(system, material, truth, plan.terms, folder)
        for setting in () if plan.prepare_only else system.settings:
            found = measure(system, setting, ready["effort"], material, truth, plan.terms)
            yield found | {"built": ready["built"], "command": plan.command}
    except Re4Error as error:
        if system is SYSTEMS[0]:
            raise
        _log.info(f"{system.title} is skipped: {error}")
        yield {"system": system.name, "title": system.title, "setting": "none", "skipped": str(error)}


def _keep_to_terms(path: Path, terms: dict[str, Any]) -> None:
    if not path.exists():
        write_json(path, terms)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(name for name in terms | before if terms.get(name) != before.get(name))
    if changed:
        raise UsageError(
            f"{path.parent} holds findings on other terms ({', '.join(changed)}): give another --out"
        )


def _measure_limit(material: Material, terms: Terms, path: Path) -> None:
    """What the pipeline does in one process, without a server: the rate that no server can exceed."""
    if path.exists():
        return
    payloads = SYSTEMS[0].payloads(material)
    with bare(material.version, payloads, terms.cores, "cpu") as process, on_core(terms.cores[1]):
        measure_bare(process, _LIMIT_WARMUP_S)
        found = measure_bare(process, _LIMIT_S)
    write_json(
        path,
        {
            "single_us": found.single_us,
            "batched_us": found.batched_us,
            "batch_size": NUM_CALLERS,
            "per_s": 1e6 / found.batched_us,
        },
    )


def _report(
    plan: Plan,
    material: Material,
    machine: dict[str, Any],
    parts: Path,
    terms: dict[str, Any],
    problem: str | None,
) -> dict[str, Any]:
    order = [system.name for system in SYSTEMS]
    reserved = {_TERMS_FILE, _LIMIT_FILE, _TURNS_FILE}
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(parts.glob("*.json"))
        if path.name not in reserved
    ]
    measured = {part["system"] for part in found if "skipped" not in part}
    found = [part for part in found if "skipped" not in part or part["system"] not in measured]
    found.sort(key=lambda part: (order.index(part["system"]), part["setting"]))
    limit, turns = (_read_if_there(parts / name) for name in (_LIMIT_FILE, _TURNS_FILE))
    stopped = [f"{part['title']}: {part['stopped']}" for part in found if part.get("stopped")]
    if turns and turns["stopped"]:
        stopped.append(f"in turns: {turns['stopped']}")
    reason = problem or (stopped[0] if stopped else None)
    manifest = read_manifest(material.version)
    report = {
        "schema_version": SCHEMA_VERSION,
        "status": "partial" if reason else "complete",
        "status_reason": reason,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": plan.command,
        "machine": machine,
        "bundle": manifest.model_dump(
            mode="json",
            include={
                "version": True,
                "model": True,
                "items": True,
                "index": {"factory", "search_parameters", "recall"},
            },
        ),
        "terms": terms,
        "in_turns": turns,
        "in_process": limit,
        "systems": [part for part in found if "skipped" not in part],
        "skipped": [part for part in found if "skipped" in part],
    }
    return report | {"comparison": compare(report)}


def _read_if_there(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
