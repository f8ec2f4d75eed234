"""Export of a finished run: inputs are read, the version's files written, and all is published at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from re4.bundle.milvus.collections import new_collection
from re4.bundle.publishing.publish import stage_version
from re4.common.console import progress
from re4.exporting.assemble import NUM_STAGES, assemble
from re4.exporting.index.index_names import check_index_name
from re4.exporting.settings import VersionSettings
from re4.exporting.sources.version_inputs import VersionInputs, inputs_from_run
from re4.exporting.storage.build_cache import BuildCache
from re4.training.run.run import Run

_DEFAULTS: Final = VersionSettings()


def export_run(run_path: Path, bundles: Path, settings: VersionSettings = _DEFAULTS) -> str:
    """Publish a finished run as the live version of a bundle directory.

    Args:
        run_path: The run's folder.
        bundles: The bundle directory; created where it does not exist.
        settings: The version's index and attributes.

    Returns:
        The version's name.

    Raises:
        UsageError: there is no such index, or no server loads it.
        RunError: the run is missing, unfinished or damaged.
        ExportError: the run cannot become a version; the directory is as it was.
        BundleError: the directory cannot be written, or an item id cannot be stored.
    """
    check_index_name(settings.index)
    run = Run.open(run_path)
    return publish_inputs(lambda scratch: inputs_from_run(run, scratch), bundles, settings)


def publish_inputs(
    read: Callable[[Path], VersionInputs], bundles: Path, settings: VersionSettings = _DEFAULTS
) -> str:
    """Publish the inputs that `read` returns for a folder of scratch files; otherwise as `export_run`."""
    with (
        progress("Exporting", total=NUM_STAGES + 2) as bar,
        BuildCache(bundles) as cache,
        stage_version(bundles) as staged,
        new_collection(bundles, settings.milvus_address) as collection,
    ):

        def begin_stage(name: str) -> None:
            bar.advance()
            bar.note(name)

        bar.note("reading the run")
        # `assemble` frees the inputs that it has written: no other reference to them is kept here.
        assembled = assemble(
            read(staged.scratch),
            staged.path,
            settings,
            begin_stage=begin_stage,
            cache=cache,
            collection=collection,
            on_progress=bar.note,
        )
        begin_stage("checksums")
        version = assembled.publish(staged, is_live=settings.go_live)
        bar.advance()
    return version
