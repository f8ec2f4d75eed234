"""One comparison from its options to its report, possibly in several calls that share a folder.

The figures of every setting are a file of their own, written at once; the report is made of all that the
folder holds. All of them must have been measured on the same terms.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from re4.benchmarks.common.machine import describe_machine
from re4.benchmarks.common.pinning import on_core, two_cores
from re4.benchmarks.common.report import Content, command_line, now_utc, write_report
from re4.benchmarks.load_generator.client import INTERRUPTED
from re4.benchmarks.load_generator.load import Timing
from re4.benchmarks.load_generator.requests import real_histories
from re4.benchmarks.overhead.measure import BATCH_SIZE, pipeline_process
from re4.benchmarks.peers.comparison import compare
from re4.benchmarks.peers.markdown import render_markdown
from re4.benchmarks.peers.measure import Terms, choose_effort, exact_answers, measure, measure_interleaved
from re4.benchmarks.peers.options import PeersOptions
from re4.benchmarks.peers.picture import draw
from re4.benchmarks.peers.systems import OURS, SYSTEMS, System, Workload
from re4.benchmarks.serve.recall import ExactAnswers
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest
from re4.common.errors import Re4Error, UsageError
from re4.common.files import write_json

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
_TERMS_FILE: Final = "terms.json"
_PIPELINE_FILE: Final = "in-process.json"
_INTERLEAVED_FILE: Final = "in-turns.json"
_PIPELINE_S: Final = 3.0
_PIPELINE_WARMUP_S: Final = 1.0
"""For pages and caches."""
_TERMS_OF_PREPARING: Final = ("version", "requests", "num_candidates", "machine", "min_recall", "seed")


def run(options: PeersOptions) -> dict[str, Any]:
    """Measure, write the report of all that the folder holds by then, and return it."""
    return _Comparison(options).run()


class _Comparison:
    def __init__(self, options: PeersOptions) -> None:
        names = [system.name for system in SYSTEMS]
        wanted = names if options.systems == "all" else list(filter(None, options.systems.split(",")))
        if unknown := next((name for name in wanted if name not in names), None):
            raise UsageError(f"--systems {unknown}: there are {', '.join(names)}, or all")
        self._options = options
        self._systems = [system for system in SYSTEMS if system.name in wanted]
        version = live_version(options.bundles)
        self._manifest = read_manifest(version)
        histories = real_histories(
            options.data, max_length=self._manifest.model.max_history_length, seed=options.seed
        )
        self._workload = Workload(
            version=version, histories=histories, num_candidates=options.num_candidates, work=options.work
        )
        self._terms = Terms(
            p99_ms=options.p99_ms,
            min_recall=options.recall,
            num_runs=options.num_runs,
            timing=Timing(warmup_s=options.warmup_s, duration_s=options.duration_s, deadline_s=5.0),
            seed=options.seed,
            cores=two_cores(),
        )
        self._machine = describe_machine()
        self._parts, self._prepared = options.out / "parts", options.out / "prepared"
        for folder in (self._parts, self._prepared):
            folder.mkdir(parents=True, exist_ok=True)
        self._terms_facts: dict[str, Any] = {
            "version": version.name,
            "requests": histories.source,
            "num_candidates": options.num_candidates,
            "machine": self._machine["cpu_model"],
            **json.loads(json.dumps(asdict(self._terms))),
        }
        kept = {name: self._terms_facts[name] for name in _TERMS_OF_PREPARING}
        _check_terms(self._prepared / _TERMS_FILE, kept)
        if not options.prepare_only:
            _check_terms(self._parts / _TERMS_FILE, self._terms_facts)

    def run(self) -> dict[str, Any]:
        try:
            problem = self._measure()
        except KeyboardInterrupt:
            problem = INTERRUPTED
        report = self._report(problem)
        files: dict[str, Content] = {"report.json": report, "report.md": render_markdown(report)}
        if report["systems"]:
            files["report.png"] = lambda path: draw(report, path)
        write_report(self._options.out, files)
        return report

    def _measure(self) -> str | None:
        """Write a file for each setting; return why measuring ended early where it did."""
        options = self._options
        if not options.prepare_only:
            self._measure_pipeline()
        exact = exact_answers(self._workload)
        if options.rounds is not None and not options.prepare_only:
            entries = []
            for system in self._systems:
                if problem := system.missing():
                    _log.info(f"{system.title} is skipped: {problem}")
                    continue
                effort = self._prepare(system, exact)["effort"]
                entries += [(system, setting, effort) for setting in system.settings]
            found = measure_interleaved(
                entries, self._workload, exact, self._terms, num_rounds=options.rounds
            )
            write_json(self._parts / _INTERLEAVED_FILE, found | {"command": command_line()})
            stopped: str | None = found["stopped"]
            return stopped
        for system in self._systems:
            for part in self._sweeps(system, exact):
                write_json(self._parts / f"{system.name}-{part['setting']}.json", part)
                if part.get("stopped"):
                    return f"{part['title']}, {part['setting']}: {part['stopped']}"
        return None

    def _prepare(self, system: System, exact: ExactAnswers) -> dict[str, Any]:
        """Return what was built for a system and its search effort, where possible from an earlier call."""
        path = self._prepared / f"{system.name}.json"
        if not path.exists():
            built = system.prepare(self._workload)
            effort = choose_effort(system, self._workload, exact, self._terms)
            write_json(path, {"built": built, "effort": effort})
        return _read(path)

    def _sweeps(self, system: System, exact: ExactAnswers) -> Iterator[dict[str, Any]]:
        """Yield the figures of a system's settings, or why there are none."""
        problem = system.missing()
        try:
            if problem is None:
                ready = self._prepare(system, exact)
                for setting in () if self._options.prepare_only else system.settings:
                    entry = system, setting, ready["effort"]
                    found = measure(entry, self._workload, exact, self._terms)
                    yield found | {"built": ready["built"], "command": command_line()}
        except Re4Error as error:
            if system.name == OURS:
                raise
            problem = str(error)
        if problem is not None:
            _log.info(f"{system.title} is skipped: {problem}")
            yield {"system": system.name, "title": system.title, "setting": "none", "skipped": problem}

    def _measure_pipeline(self) -> None:
        """Time the pipeline in one process, without a server: the rate that no server can exceed."""
        path = self._parts / _PIPELINE_FILE
        if path.exists():
            return
        server_core, client_core = self._terms.cores
        payloads = SYSTEMS[0].payloads(self._workload)
        with (
            pipeline_process(self._workload.version, payloads, core=server_core, device="cpu") as process,
            on_core(client_core),
        ):
            process.measure(_PIPELINE_WARMUP_S)
            found = process.measure(_PIPELINE_S)
        times = {name: found[name] for name in ("single_us", "batched_us")}
        write_json(path, {**times, "batch_size": BATCH_SIZE, "per_s": 1e6 / found["batched_us"]})

    def _report(self, problem: str | None) -> dict[str, Any]:
        order = [system.name for system in SYSTEMS]
        reserved = {_TERMS_FILE, _PIPELINE_FILE, _INTERLEAVED_FILE}
        found = [_read(path) for path in sorted(self._parts.glob("*.json")) if path.name not in reserved]
        measured = {part["system"] for part in found if "skipped" not in part}
        found = [part for part in found if "skipped" not in part or part["system"] not in measured]
        found.sort(key=lambda part: (order.index(part["system"]), part["setting"]))
        pipeline, rounds = (
            _read(path) if (path := self._parts / name).exists() else None
            for name in (_PIPELINE_FILE, _INTERLEAVED_FILE)
        )
        stopped = [f"{part['title']}: {part['stopped']}" for part in found if part.get("stopped")]
        if rounds and rounds["stopped"]:
            stopped.append(f"interleaved: {rounds['stopped']}")
        reason = problem or (stopped[0] if stopped else None)
        index = {"factory", "search_parameters", "recall"}
        report = {
            "schema_version": SCHEMA_VERSION,
            "status": "partial" if reason else "complete",
            "status_reason": reason,
            "created_at": now_utc(),
            "command": command_line(),
            "machine": self._machine,
            "bundle": self._manifest.model_dump(
                mode="json", include={"version": True, "model": True, "items": True, "index": index}
            ),
            "terms": self._terms_facts,
            "in_turns": rounds,
            "in_process": pipeline,
            "systems": [part for part in found if "skipped" not in part],
            "skipped": [part for part in found if "skipped" in part],
        }
        return report | {"comparison": compare(report)}


def _check_terms(path: Path, terms: dict[str, Any]) -> None:
    if not path.exists():
        write_json(path, terms)
        return
    before = _read(path)
    changed = sorted(name for name in terms | before if terms.get(name) != before.get(name))
    if changed:
        raise UsageError(
            f"{path.parent} holds findings on other terms ({', '.join(changed)}): give another --out"
        )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
