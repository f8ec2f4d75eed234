"""From a finished run to a published bundle version.

Takes the material from a run, has the version's files written, and publishes the whole. Knows nothing about
how any of these is done, nor about serving.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from re4.bundle.publishing.publish import stage_version
from re4.common.console import progress
from re4.exporting.assemble import NUM_STAGES, assemble
from re4.exporting.index.auto import AUTO
from re4.exporting.index.devices import Device
from re4.exporting.index.make import check_request
from re4.exporting.index.tuning import Goal
from re4.exporting.sources.material import Material, run_material
from re4.exporting.storage.build_cache import building_room
from re4.training.run.run import Run

DEFAULT_GOAL: Final = Goal(recall=0.95, num_candidates=100)


def export_run(
    run_path: Path,
    bundles: Path,
    *,
    index: str = AUTO,
    goal: Goal = DEFAULT_GOAL,
    attributes: Sequence[str] | None = None,
    memory_limit: int | None = None,
    device: Device = Device.CPU,
) -> str:
    """Publish a finished run as the live version of a bundle directory.

    Args:
        run_path: The run's folder.
        bundles: The bundle directory; created where it does not exist.
        index: `auto`, a name in `re4.exporting.index.families.RECIPES`, or a FAISS factory string.
        goal: The recall that the index is tuned to.
        attributes: Columns of the catalogue to keep as attributes; None to keep those that describe.
        memory_limit: Bytes that building the index may hold at once; None for no limit.
        device: What servers will search the index on.

    Returns:
        The version's name.

    Raises:
        UsageError: there is no such index, no server loads it, or the goal is out of range.
        RunError: the run is missing, unfinished or damaged.
        ExportError: the run cannot become a version; the directory is as it was.
        BundleError: the directory cannot be written, or an item id cannot be stored.
    """
    check_request(index, goal)
    run = Run.open(run_path)
    return publish_material(
        lambda scratch: run_material(run, scratch),
        bundles,
        index=index,
        goal=goal,
        attributes=attributes,
        memory_limit=memory_limit,
        device=device,
    )


def publish_material(
    read: Callable[[Path], Material],
    bundles: Path,
    *,
    index: str,
    goal: Goal = DEFAULT_GOAL,
    attributes: Sequence[str] | None = None,
    memory_limit: int | None = None,
    device: Device = Device.CPU,
) -> str:
    """Publish what is given once there is a folder for scratch files, which it gets; as `export_run`."""
    with (
        progress("Exporting", total=NUM_STAGES + 2) as bar,
        building_room(bundles) as room,
        stage_version(bundles) as staged,
    ):

        def stage(name: str) -> None:
            bar.advance()
            bar.note(name)

        bar.note("reading the run")
        assembled = assemble(
            read(staged.scratch),
            staged.path,
            index=index,
            goal=goal,
            attributes=attributes,
            stage=stage,
            room=room,
            memory_limit=memory_limit,
            device=device,
            note=bar.note,
        )
        stage("checksums")
        version = assembled.publish(staged)
        bar.advance()
    return version
