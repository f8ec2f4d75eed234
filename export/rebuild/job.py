"""The rebuild of a bundle directory: read, select, assemble, check by gates, publish, prune.

It runs unattended: one job at a time; nothing is published where a gate fails; a job that ends early leaves
nothing behind.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import CURRENT, IS_COLD, VECTORS
from re4.bundle.live_items.compaction import compact
from re4.bundle.live_items.state import read_live_state
from re4.bundle.milvus.collections import new_collection
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.directory_lock import rebuild_lock
from re4.bundle.publishing.publish import StagedVersion, stage_version
from re4.bundle.publishing.retention import prune
from re4.common.console import progress
from re4.common.errors import BundleError, BundleUnavailableError, UsageError
from re4.exporting.assemble import NUM_STAGES, AssembledVersion, assemble
from re4.exporting.catalogue.items import ID
from re4.exporting.index.index_names import check_index_name
from re4.exporting.rebuild.live_changes import LiveChanges, rows_of, without_catalogue
from re4.exporting.rebuild.live_items import LiveItems, keep_all_items, select_live_items
from re4.exporting.rebuild.quality_gates import (
    embedding_space_gate,
    raise_if_failed,
    recall_change_gate,
    run_gates,
)
from re4.exporting.rebuild.recall_change import compare_with_live
from re4.exporting.rebuild.report import RebuildReport, gate_figures
from re4.exporting.rebuild.settings import LIVE, RebuildRequest
from re4.exporting.sources.encoder_source import inputs_from_vectors, open_encoder_source
from re4.exporting.sources.given_vectors import read_npy, read_parquet
from re4.exporting.sources.published_version import PublishedVersion, open_version
from re4.exporting.sources.version_inputs import VersionInputs, inputs_from_run
from re4.exporting.storage.build_cache import BuildCache
from re4.exporting.storage.eta import OnProgress, format_duration
from re4.training.data.catalogue import read_catalogue
from re4.training.data.tables.row_store import in_folder
from re4.training.run.run import Run
from re4.training.run.run_folder import newest_run

_log = logging.getLogger(__name__)

_LAST_TIME: Final = "stages_s_last_time"
_RUN: Final = "run"


def rebuild(request: RebuildRequest, report: RebuildReport, command: str) -> str | None:
    """Make a version, check it, and make it the live one.

    Args:
        request: The settings.
        report: Gets stages, gates and facts as they become known.
        command: The command line, shown to a second job on the same directory.

    Returns:
        The version's name; None for a dry run.

    Raises:
        UsageError: there is no such index.
        BundleBusyError: another rebuild of this directory is at work.
        GateError: a gate failed. Nothing was published.
        Re4Error: any other failure. Nothing was published.
    """
    check_index_name(request.version.index)
    with (
        _folder(request.bundles),
        rebuild_lock(request.bundles, command) as lock,
        _stages(report) as (begin_stage, on_progress),
        BuildCache(request.bundles) as cache,
    ):
        begin_stage("live version")
        live = _live(request.bundles, report)
        changes_of: list[LiveChanges] = []
        with (
            stage_version(request.bundles) as staged,
            new_collection(request.bundles, request.version.milvus_address) as collection,
        ):
            assembled = assemble(
                # No reference is kept here: `assemble` frees the inputs that it has written.
                _live_inputs(request, live, staged, report, begin_stage, changes_of.append),
                staged.path,
                request.version,
                begin_stage=begin_stage,
                required_attributes=(IS_COLD,),
                cache=cache,
                collection=collection,
                on_progress=on_progress,
            )
            changes = changes_of[0]
            report.facts["cold_start"] = dict(assembled.cold_start)
            report.facts["num_cold_without_relatives"] = assembled.cold_start["num_at_mean"]
            report.facts["index"] = assembled.index.factory or assembled.index.kind
            begin_stage("gates")
            target = request.version.target
            for result in run_gates(assembled, staged.path, live, bounds=request.bounds, target=target):
                report.gates.append(result)
            _compare_with_live(request, assembled, staged, live, report)
            raise_if_failed(report.gates)
            if request.job.dry_run:
                return None
            begin_stage("publish")
            lock.check()
            version = assembled.publish(
                staged,
                {
                    "gates": gate_figures(report.gates),
                    **{gate.name: dict(gate.details) for gate in report.gates if gate.details},
                    "stages_s": dict(report.stages_s),
                },
                is_live=request.version.go_live,
                live_sequence=changes.sequence,
            )
        report.facts["version"] = version
        begin_stage("prune")
        _prune(request.bundles, request.job.keep, report)
        if request.version.go_live:  # otherwise the live version needs the changes still
            _compact(request.bundles, changes, report)
    return version


@contextmanager
def _folder(bundles: Path) -> Iterator[None]:
    """Make the bundle directory where it is missing, and remove it again where it stays empty."""
    was_there = bundles.exists()
    try:
        bundles.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{bundles}: cannot be made ({error.strerror})") from error
    try:
        yield
    finally:
        if not was_there and not any(bundles.iterdir()):
            bundles.rmdir()


@contextmanager
def _stages(report: RebuildReport) -> Iterator[tuple[Callable[[str], None], OnProgress]]:
    """Yield two functions: one begins the next stage, shown and measured; one shows its progress."""
    total = NUM_STAGES + 6
    with progress("Rebuilding", total=total) as bar, ExitStack() as ended:
        current: list[ExitStack] = []

        def begin_stage(name: str) -> None:
            if current:
                current.pop().close()
                bar.advance()
            running = ended.enter_context(ExitStack())
            running.enter_context(report.stage(name))
            current.append(running)
            left_s = seconds_left(report.facts.get(_LAST_TIME, {}), name)
            bar.note(
                name if left_s is None else f"{name}, {format_duration(left_s)} left if it goes as last time"
            )

        yield begin_stage, bar.note


def seconds_left(last_time_s: Mapping[str, float], stage: str) -> float | None:
    """Estimate the time left at the beginning of a stage from the stages of the last job.

    Args:
        last_time_s: Seconds by stage, in order.
        stage: The stage. Its first word identifies it; other words may differ from the last time.

    Returns:
        Seconds; None where the last time is not known.
    """
    names = [name.split()[0] for name in last_time_s]
    word = stage.split()[0]
    return sum(list(last_time_s.values())[names.index(word) :]) if word in names else None


def _live(bundles: Path, report: RebuildReport) -> PublishedVersion | None:
    """Open the live version to compare with; None where there is none, or only a damaged one."""
    if not (bundles / CURRENT).exists():
        _log.info("no version is live yet: gates that compare with one are left out")
        return None
    try:
        live = open_version(live_version(bundles))
    except BundleUnavailableError:
        raise
    except BundleError as error:
        _log.info(f"the live version cannot be compared with, gates that do are left out: {error}")
        report.facts["live_version_problem"] = str(error)
        return None
    report.facts["live_version_before"] = live.manifest.version
    before = live.manifest.lineage.get("stages_s")
    if isinstance(before, dict):
        report.facts[_LAST_TIME] = {
            name: float(seconds) for name, seconds in before.items() if isinstance(seconds, int | float)
        }
    return live


def _live_inputs(
    request: RebuildRequest,
    live: PublishedVersion | None,
    staged: StagedVersion,
    report: RebuildReport,
    begin_stage: Callable[[str], None],
    on_changes: Callable[[LiveChanges], None],
) -> VersionInputs:
    """Read the inputs and select the live items; report the changes of live items that are taken in."""
    begin_stage("read")
    inputs = _read(request, live, staged.scratch, report)
    begin_stage("select")
    selected, changes = _select(request, inputs, live, staged, report)
    on_changes(changes)
    _report_selection(selected, report)
    return selected.inputs


def _read(
    request: RebuildRequest, live: PublishedVersion | None, scratch: Path, report: RebuildReport
) -> VersionInputs:
    """Read all inputs. The agreement of vectors made elsewhere with their encoder goes into the report."""
    source = request.source
    if source.run is not None:
        run = newest_run(source.run)
        if run != source.run:
            _log.info(f"the newest finished run of {source.run} is {run.name}")
        report.facts[_RUN] = str(run)
        return inputs_from_run(Run.open(run), scratch)
    assert source.vectors is not None  # one of the two is given
    encoder_path = _encoder_path(request, live)
    given = (
        read_parquet(source.vectors, source.id_column, source.vector_column, scratch)
        if source.ids is None
        else read_npy(source.vectors, source.ids)
    )
    inputs, agreement = inputs_from_vectors(given, open_encoder_source(encoder_path, scratch), scratch)
    report.gates.append(embedding_space_gate(agreement, request.bounds))
    return inputs


def _compare_with_live(
    request: RebuildRequest,
    assembled: AssembledVersion,
    staged: StagedVersion,
    live: PublishedVersion | None,
    report: RebuildReport,
) -> None:
    """Add the gate of the change of recall; where the versions cannot be compared, report the reason."""
    if live is None or request.source.run is None or request.bounds.min_recall_change <= -1:
        return
    item_ids = ItemIds.open(staged.path, assembled.items.id_kind, assembled.items.num_items)
    change = compare_with_live(assembled, item_ids, Run.open(Path(report.facts[_RUN])), live)
    if isinstance(change, str):
        _log.info(f"gate recall_change is left out: {change}")
        report.facts["recall_change_left_out"] = change
        return
    if gate := recall_change_gate(change, request.bounds):
        report.gates.append(gate)


def _encoder_path(request: RebuildRequest, live: PublishedVersion | None) -> Path:
    """Return the folder of the version or run that `--encoder-from` names."""
    name = request.source.encoder_from
    if name == LIVE:
        if live is None:
            raise UsageError(
                "--vectors needs an encoder, and no version is live to take it from: name the folder of a "
                "version or of a run with --encoder-from"
            )
        return live.path
    for path in (Path(name), request.bundles / name):
        if path.exists():
            return path
    raise UsageError(
        f"--encoder-from {name}: there is no such folder, and no such version in {request.bundles}"
    )


def _select(
    request: RebuildRequest,
    inputs: VersionInputs,
    live: PublishedVersion | None,
    staged: StagedVersion,
    report: RebuildReport,
) -> tuple[LiveItems, LiveChanges]:
    """Select the live items: by the catalogue, and by the changes of live items in the bundle directory."""
    settings, keep = request.catalogue, in_folder(staged.scratch)
    catalogue = None
    if settings.catalogue is not None:
        item_column = settings.catalogue_item_column or inputs.catalogue_item_column or ID
        catalogue = read_catalogue(settings.catalogue, item_column, keep)
    changes = LiveChanges.of(
        read_live_state(request.bundles),
        "string" if isinstance(inputs.items.ids[0], str) else "int",
        catalogue,
        0 if live is None else live.manifest.live_sequence,
    )
    vectors_file = staged.path / VECTORS
    if changes:
        rows = rows_of(inputs) if catalogue is None else catalogue.rows
        where = inputs.where if catalogue is None else catalogue.file
        merged = changes.apply(rows, keep, where, request.version.title_column)
        selected = select_live_items(inputs, merged, vectors_file, staged.scratch)
        selected = changes.give_vectors(selected, staged.path, staged.scratch)
        if catalogue is None:
            selected = without_catalogue(selected)
        report.facts |= {
            "num_live_upserts": len(changes.upserts),
            "num_live_removals": len(changes.removals),
        }
        _log.info(
            f"live items: {len(changes.upserts):,} added or changed, {len(changes.removals):,} removed, up "
            f"to change {changes.sequence}"
        )
    elif catalogue is None:
        selected = keep_all_items(inputs, vectors_file, staged.scratch)
    else:
        selected = select_live_items(inputs, catalogue, vectors_file, staged.scratch)
    return selected, changes


def _report_selection(selected: LiveItems, report: RebuildReport) -> None:
    num_live = len(selected.inputs.vectors_ND)
    report.facts |= {
        "num_live": num_live,
        "num_cold": selected.num_cold,
        "num_removed": selected.num_removed,
        "num_unusable_catalogue_rows": selected.num_unusable,
        "num_histories": len(selected.inputs.rows_PL),
    }
    _log.info(
        f"{num_live:,} items are live: {selected.num_removed:,} left, {selected.num_cold:,} are new and "
        f"start from their attributes"
    )
    if selected.num_unusable:
        _log.info(
            f"{selected.num_unusable:,} rows of the catalogue have ids that cannot be this run's, and are "
            f"left out"
        )


def _prune(bundles: Path, num_kept: int, report: RebuildReport) -> None:
    """Remove old versions. The new one is live already: a failure is logged, and does not fail the job."""
    try:
        report.facts["pruned"] = prune(bundles, num_kept=num_kept)
    except BundleError as error:
        _log.info(f"published, but old versions could not be removed: {error}")
        report.facts["prune_problem"] = str(error)


def _compact(bundles: Path, changes: LiveChanges, report: RebuildReport) -> None:
    """Drop changes of live items that every version and the catalogue have. A failure is only logged."""
    if not changes.sequence:
        return
    try:
        compact(bundles, adopted=changes.adopted)
    except BundleError as error:
        _log.info(f"published, but the live items could not be compacted: {error}")
        report.facts["compaction_problem"] = str(error)
