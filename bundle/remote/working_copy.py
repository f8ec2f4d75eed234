"""Commands on a bundle directory in object storage: they work in a local copy, which is then pushed.

    CACHE/NAME/serve      mirror of a server
    CACHE/NAME/work-1     working copy of a command; a second command at the same time takes work-2

A working copy has the files of the live version that its command needs, and the manifests of all stored ones.
A command that ends
well is pushed: new versions first, then each of HIDDEN, LIVE, CURRENT and CANARY that the command changed, by
a conditional put against the state at the command's start. Versions that it removed are removed last.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from re4.bundle.layout import CURRENT, LIVE
from re4.bundle.publishing.versions import version_names
from re4.bundle.remote.address import LiveFiles, cache_folder, url_of
from re4.bundle.remote.mirror import Mirror
from re4.bundle.remote.object_store import ObjectStore
from re4.bundle.remote.push import State, push_file, push_version, read_contents, remove_versions
from re4.common.errors import BundleBusyError

_log = logging.getLogger(__name__)

_MAX_COPIES: Final = 9


@contextmanager
def bundle_directory(
    bundles: Path,
    *,
    version_of: Callable[[Path], str | None] = lambda folder: None,
    live_files: LiveFiles = LiveFiles.ALL,
) -> Iterator[Path]:
    """Yield the local directory of `--bundles`: itself, or a copy of object storage, pushed at the end.

    Args:
        bundles: A local directory, or an address such as `s3://models/shop`.
        version_of: Returns, from the local copy, a version whose files are needed beside those of the live
            one; None for none.
        live_files: The files of the live version and of the canary that are needed.

    Raises:
        BundleBusyError: another publisher changed the same file meanwhile. Nothing of the command counts.
        BundleError: the storage or the copy cannot be used. After an error in the block nothing is pushed.
    """
    url = url_of(bundles)
    if url is None:
        yield bundles
        return
    store = ObjectStore(url)
    with ExitStack() as stack:
        mirror, folder = _free_copy(store, stack)
        state = mirror.take_over(live_files)
        names, contents = version_names(folder), read_contents(folder)
        if (version := version_of(folder)) in names:
            mirror.fetch(str(version))
        yield folder
        _push(folder, store, state, names, contents)
        mirror.pushed_live_items()


def _free_copy(store: ObjectStore, stack: ExitStack) -> tuple[Mirror, Path]:
    """Lock the first working copy that no other command uses."""
    for number in range(1, _MAX_COPIES):
        folder = cache_folder(store.url, f"work-{number}")
        mirror = Mirror(store, folder, is_working_copy=True)
        with suppress(BundleBusyError):
            stack.enter_context(mirror.locked(patience_s=0))
            return mirror, folder
    raise BundleBusyError(f"{store.url}: {_MAX_COPIES - 1} commands work on copies of it; try again later")


def _push(
    folder: Path, store: ObjectStore, state: State, names: list[str], before: dict[str, bytes | None]
) -> None:
    """Write what a command has changed."""
    names_now, now = version_names(folder), read_contents(folder)
    for name in names_now:
        if name not in names:
            push_version(folder / name, store)
    is_new_version = now[CURRENT] != before[CURRENT]
    for name, content in now.items():
        if content == before[name]:
            continue
        try:
            push_file(folder, name, content, store, state)
        except BundleBusyError:
            if not (name == LIVE and is_new_version):
                raise
            # A rebuild only compacts live items: those that were added meanwhile stay as they are.
            _log.info(f"{store.url}/{LIVE} was changed meanwhile, and is compacted by the next rebuild")
    remove_versions(store, [name for name in names if name not in names_now])
