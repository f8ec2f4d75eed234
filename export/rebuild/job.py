"""The offline job that keeps a bundle directory fresh: read, select, assemble, judge, publish, prune.

Everything that a scheduler's nightly call does, without anyone watching: one job at a time, nothing published
that a gate objects to, nothing left behind where it ends early. Knows nothing about how each step is done.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from re4.bundle.layout import CURRENT, IS_COLD, VECTORS
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.directory_lock import rebuild_lock
from re4.bundle.publishing.publish import StagedVersion, stage_version
from re4.bundle.publishing.retention import prune
from re4.common.console import progress
from re4.common.errors import BundleError, UsageError
from re4.exporting.assemble import NUM_STAGES, assemble
from re4.exporting.index.auto import AUTO
from re4.exporting.index.devices import Device
from re4.exporting.index.make import check_request
from re4.exporting.index.tuning import Goal
from re4.exporting.rebuild.live_items import Selected, all_live, select_live
from re4.exporting.rebuild.quality_gates import Bounds, GateResult, judge, refuse_failed
from re4.exporting.rebuild.report import JobReport, gates_as_facts
from re4.exporting.sources.encoder_source import donor_from, given_material
from re4.exporting.sources.given_vectors import GivenVectors, read_npy, read_parquet
from re4.exporting.sources.material import Material, run_material
from re4.exporting.sources.published_version import PublishedVersion, open_version
from re4.exporting.sources.runs import newest_run
from re4.exporting.storage.build_cache import building_room
from re4.exporting.storage.eta import Note, in_words
from re4.training.data.catalogue import read_catalogue
from re4.training.data.tables.materialize import in_folder
from re4.training.run.run import Run

_log = logging.getLogger(__name__)

_LAST_TIME: Final = "stages_s_last_time"
LIVE: Final = "live"
"""Where an encoder is taken from by default: the live version."""


@dataclass(frozen=True, kw_only=True)
class RebuildRequest:
    """What to rebuild from, and what the outcome must be like."""

    bundles: Path
    run: Path | None = None
    """A run's folder, or a folder of runs, of which the newest is taken; None to take vectors."""
    vectors: Path | None = None
    """`.npy` with `ids`, or a parquet file with both; None to take a run."""
    ids: Path | None = None
    id_column: str = "item_id"
    vector_column: str = "vector"
    encoder_from: str = LIVE
    """For vectors: `live`, a version's name, or the folder of a version or of a run."""
    catalogue: Path | None = None
    """What is live; None for everything that has a vector."""
    catalogue_item_column: str = "item_id"
    attributes: Sequence[str] | None = None
    """Columns that callers can filter by; None to choose."""
    index: str = AUTO
    goal: Goal
    bounds: Bounds = field(default_factory=Bounds)
    memory_limit: int | None = None
    """Bytes that building the index may hold at once; None for no limit."""
    device: Device = Device.CPU
    """What servers will search the index on."""
    num_kept: int | None = 3
    """Versions older than the new one that stay; None to remove none."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Refuse words that contradict each other.

        Raises:
            UsageError: naming the options.
        """
        if (self.run is None) == (self.vectors is None):
            raise UsageError("give either --run or --vectors: where the item vectors come from")
        if self.vectors is not None:
            is_parquet = self.vectors.suffix.lower() == ".parquet"
            if is_parquet == (self.ids is not None):
                raise UsageError(
                    f"--vectors {self.vectors}: "
                    + (
                        "a parquet file holds the ids as well, leave --ids out"
                        if is_parquet
                        else "--ids is missing"
                    )
                )
        elif self.ids is not None or self.encoder_from != LIVE:
            raise UsageError(
                "--ids and --encoder-from go with --vectors: a run brings its ids and its encoder"
            )
        if self.num_kept is not None and self.num_kept < 0:
            raise UsageError(f"--keep {self.num_kept}: it must be 0 or more")
        check_request(self.index, self.goal)


def rebuild(request: RebuildRequest, report: JobReport, command: str) -> str | None:
    """Make a version, judge it, and make it the live one.

    Args:
        request: What to do.
        report: Gets stages, gates and facts as they become known.
        command: What to tell a second job is at work.

    Returns:
        The version's name; None for a dry run.

    Raises:
        BundleBusyError: another rebuild of this directory is at work.
        GateError: a gate failed. Nothing was published.
        Re4Error: anything else that went wrong. Nothing was published.
    """
    with (
        _folder(request.bundles),
        rebuild_lock(request.bundles, command) as lock,
        _stages(report) as (stage, note),
        building_room(request.bundles) as room,
    ):
        stage("live version")
        live = _live(request.bundles, report)
        with stage_version(request.bundles) as staged:
            assembled = assemble(
                _material(request, live, staged, report, stage),  # kept by nobody here
                staged.path,
                index=request.index,
                goal=request.goal,
                attributes=None if request.attributes is None else [*request.attributes, IS_COLD],
                stage=stage,
                room=room,
                memory_limit=request.memory_limit,
                device=request.device,
                note=note,
            )
            report.facts["index"] = assembled.index.factory or assembled.index.kind
            stage("gates")
            for result in judge(assembled, staged.path, live, bounds=request.bounds, goal=request.goal):
                report.gates.append(result)
            refuse_failed(report.gates)
            if request.dry_run:
                return None
            stage("publish")
            lock.check()
            version = assembled.publish(
                staged, {"gates": gates_as_facts(report.gates), "stages_s": dict(report.stages_s)}
            )
        report.facts["version"] = version
        if request.num_kept is not None:
            stage("prune")
            _prune(request.bundles, request.num_kept, report)
    return version


@contextmanager
def _folder(bundles: Path) -> Iterator[None]:
    """The bundle directory, made where it is missing; one that stayed empty goes again."""
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
def _stages(report: JobReport) -> Iterator[tuple[Callable[[str], None], Note]]:
    """Two functions: one begins the next stage, shown and measured, one tells how far it is."""
    total = NUM_STAGES + 6
    with progress("Rebuilding", total=total) as bar, ExitStack() as ended:
        current: list[ExitStack] = []

        def stage(name: str) -> None:
            if current:
                current.pop().close()
                bar.advance()
            running = ended.enter_context(ExitStack())
            running.enter_context(report.stage(name))
            current.append(running)
            left_s = seconds_left(report.facts.get(_LAST_TIME, {}), name)
            bar.note(name if left_s is None else f"{name}, {in_words(left_s)} left if it goes as last time")

        yield stage, bar.note


def seconds_left(last_time_s: Mapping[str, float], stage: str) -> float | None:
    """How long a job still takes from the beginning of a stage, by what the stages of the last one took.

    Args:
        last_time_s: Seconds by stage, in order.
        stage: Its first word tells it from the others: the rest may name what is new this time.

    Returns:
        None where the last time is not known.
    """
    names = [name.split()[0] for name in last_time_s]
    word = stage.split()[0]
    return sum(list(last_time_s.values())[names.index(word) :]) if word in names else None


def _live(bundles: Path, report: JobReport) -> PublishedVersion | None:
    """The version to compare with; None where there is none, or a damaged one: then this job is the cure."""
    if not (bundles / CURRENT).exists():
        _log.info("no version is live yet: gates that compare with one are left out")
        return None
    try:
        live = open_version(live_version(bundles))
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


def _material(
    request: RebuildRequest,
    live: PublishedVersion | None,
    staged: StagedVersion,
    report: JobReport,
    stage: Callable[[str], None],
) -> Material:
    """What is live: read and selected."""
    stage("read")
    material = _read(request, live, staged.scratch, report)
    stage("select")
    selected = _select(request, material, staged)
    _tell(selected, report)
    return selected.material


def _read(
    request: RebuildRequest, live: PublishedVersion | None, scratch: Path, report: JobReport
) -> Material:
    """All there is; how well vectors made elsewhere agree with their encoder's goes into the report."""
    if request.run is not None:
        run = newest_run(request.run)
        if run != request.run:
            _log.info(f"the newest finished run of {request.run} is {run.name}")
        return run_material(Run.open(run), scratch)
    source = Path(request.encoder_from)
    if request.encoder_from == LIVE:
        if live is None:
            raise UsageError(
                "--vectors needs an encoder, and no version is live to take it from: name the folder of a "
                "version or of a run with --encoder-from"
            )
        source = live.path
    elif not source.exists():
        source = request.bundles / request.encoder_from
        if not source.exists():
            raise UsageError(
                f"--encoder-from {request.encoder_from}: there is no such folder, and no such version in "
                f"{request.bundles}"
            )
    material, agreement = given_material(_given(request, scratch), donor_from(source, scratch), scratch)
    report.gates.append(_space(agreement, request))
    return material


def _given(request: RebuildRequest, scratch: Path) -> GivenVectors:
    assert request.vectors is not None  # it was asked for
    if request.ids is None:
        return read_parquet(request.vectors, request.id_column, request.vector_column, scratch)
    return read_npy(request.vectors, request.ids)


def _select(request: RebuildRequest, material: Material, staged: StagedVersion) -> Selected:
    if request.catalogue is None:
        return all_live(material, staged.path / VECTORS, staged.scratch)
    catalogue = read_catalogue(request.catalogue, request.catalogue_item_column, in_folder(staged.scratch))
    return select_live(material, catalogue, staged.path / VECTORS, staged.scratch)


def _tell(selected: Selected, report: JobReport) -> None:
    num_live = len(selected.material.vectors_ND)
    report.facts |= {
        "num_live": num_live,
        "num_cold": selected.num_cold,
        "num_cold_without_relatives": selected.num_unknown,
        "num_removed": selected.num_removed,
        "num_unusable_catalogue_rows": selected.num_unusable,
        "num_histories": len(selected.material.rows_PL),
    }
    _log.info(
        f"{num_live:,} items are live: {selected.num_removed:,} left, {selected.num_cold:,} are new and "
        f"start from their attributes ({selected.num_unknown:,} of them share none with a trained item)"
    )
    if selected.num_unusable:
        _log.info(
            f"{selected.num_unusable:,} rows of the catalogue have ids that cannot be this run's, and are "
            f"left out"
        )


def _space(agreement: float, request: RebuildRequest) -> GateResult:
    return GateResult(
        name="space",
        figure=agreement,
        low=request.bounds.min_agreement,
        meaning="median cosine between the given vectors and those that the encoder was trained with",
        advice="the encoder works only in its own space: name the one that fits with --encoder-from",
    )


def _prune(bundles: Path, num_kept: int, report: JobReport) -> None:
    """Remove old versions. What is live is live: a failure here is told, and does not fail the job."""
    try:
        report.facts["pruned"] = prune(bundles, num_kept=num_kept)
    except BundleError as error:
        _log.info(f"published, but old versions could not be removed: {error}")
        report.facts["prune_problem"] = str(error)
